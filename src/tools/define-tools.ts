import type { CALL_CONTEXT, CallContext } from '../gate/call-context.js';
import {
  type Checks,
  callable,
  oneOf,
  options,
  positiveMs,
  refusal,
  text,
  wholeNumber,
} from '../internal/validate.js';
import type { Budget } from '../request/budget.js';
import { type JsonSchema, jsonSchemaOf, type StandardSchema } from './schema.js';

/**
 * How long a tool's client lives, and what shares it: `shared` is one for all instances of a factory, `instance` one for
 * each pipeline, `task` one for each lease, created on first use and disposed of with the lease.
 */
export type ToolScope = 'shared' | 'instance' | 'task';

/** Which instance, and which task, a client is created for. */
export interface ConnectContext {
  /** The instance that needs it; for a shared client, the first one that did. */
  readonly instanceId: number;
  /** The task that needs it; only for a client of scope `task`. */
  readonly taskId?: string;
  /** Aborts once nothing waits for the client any more. It does not bound the client's life. */
  readonly signal: AbortSignal;
}

/** What one attempt of a call receives. */
export interface ToolCallContext {
  /** Aborts when the call's time is up, its caller aborts it, or its lease ends. */
  readonly signal: AbortSignal;
  /** The gate's API key for this attempt; empty without a gate, or if the gate has no keys. */
  readonly key: string;
  /** The task that holds the pipeline. */
  readonly taskId: string | undefined;
  /** Counts from 1. */
  readonly attempt: number;
  /** Corrects the call's `weight` in the gate's windows, where it was an estimate. Does nothing without a gate. */
  reportUsage(actual: number): void;
}

/** What `disconnect`, `reset` and `check` receive. */
export interface ToolClientContext {
  /** Aborts when their time is up. */
  readonly signal: AbortSignal;
}

/** What a gate passes to one attempt. */
export interface ToolGateAttempt {
  readonly signal: AbortSignal;
  /** The key to use; empty or absent if the gate has none. */
  readonly key?: string | undefined;
  readonly attempt: number;
  reportUsage(actual: number): void;
}

/** What a tool passes to its gate for a call. */
export interface ToolGateOptions {
  /** Aborts the call wherever it is. @default none */
  readonly signal?: AbortSignal | undefined;
  /** Milliseconds that the whole call may take. @default unlimited */
  readonly timeoutMs?: number | undefined;
  /** Higher goes first; an integer. @default 0 */
  readonly priority?: number | undefined;
  /** The owner of the request. @default none */
  readonly tenant?: string | undefined;
  /** What the call counts in windows of `unit: 'weight'`. @default 1 */
  readonly weight?: number | undefined;
  /** The task of the call, for events. @default none */
  readonly taskId?: string | undefined;
  /** The request of the call, for events. @default none */
  readonly requestId?: string | undefined;
  /** The tool call that this call serves, for events. @default none */
  readonly toolCallId?: number | undefined;
  /** Calls with the same key share a result. @default not cached */
  readonly cacheKey?: string | undefined;
  /** What the call spends from. @default none */
  readonly budget?: Budget | undefined;
  /** @internal The signal and the deadline of the tool call, for a gate that takes them as they are. */
  readonly [CALL_CONTEXT]?: CallContext | undefined;
}

/**
 * What a tool needs of a gate. A `ServiceGate` is one.
 *
 * @example
 * const passThrough: ToolGate = { run: async (work) => work({ signal: AbortSignal.timeout(5_000), attempt: 1, reportUsage() {} }) };
 */
export interface ToolGate {
  run<R>(work: (attempt: ToolGateAttempt) => R | PromiseLike<R>, options?: ToolGateOptions): Promise<R>;
  /** @internal Whether it bounds its attempts by the context of the tool call. */
  readonly [CALL_CONTEXT]?: true;
}

/**
 * One operation that an agent can call, on the host's own client.
 *
 * Tools of one scope with the same `connect` function share its client: several tools of one browser, one sandbox or one
 * MCP server. Their `disconnect`, `reset` and `check` must be the same too.
 */
export interface Tool<Client, Input, Result> {
  /** How long the client lives, and what shares it. @default 'instance' */
  readonly scope?: ToolScope | undefined;
  /** Creates the client. */
  connect(context: ConnectContext): Client | PromiseLike<Client>;
  /** Disposes of the client. A failure is emitted as `tool:disconnect-failed` and affects nothing else. @default nothing */
  disconnect?(client: Client, context: ToolClientContext): unknown;
  /**
   * Clears the state of a task from a client of scope `instance` before the next task. A failure replaces the instance.
   * @default nothing
   */
  reset?(client: Client, context: ToolClientContext): unknown;
  /** Whether a client of scope `instance` is healthy; anything but `true` replaces the instance. @default healthy */
  check?(client: Client, context: ToolClientContext): boolean | PromiseLike<boolean>;
  /** Makes the call. With a gate it is one attempt, and the gate decides whether there is another. */
  call(client: Client, input: Input, context: ToolCallContext): Result | PromiseLike<Result>;
  /** The gate of the service behind the tool: a `ServiceGate`, or any object with its `run`. @default none */
  readonly gate?: ToolGate | undefined;
  /**
   * The key under which the gate may answer from its cache or merge concurrent calls; `undefined` for neither. It must
   * contain everything that the result depends on.
   * @default none
   */
  cacheKey?(input: Input): string | undefined;
  /** What the call counts as in the gate's windows of weight. @default 1 */
  weight?(input: Input): number;
  /** Milliseconds that a whole call may take: connecting, waiting in the gate, retries. @default 300000 */
  readonly timeoutMs?: number | undefined;
  /**
   * Checks and converts what a model sent as input, synchronously. Its error is the agent's answer. Used by `answer` only.
   * @default `schema`, or else as it is
   */
  parse?(input: unknown): Input;
  /**
   * A schema of zod, valibot or any library that implements Standard Schema: the type of the input, and in place of `parse`
   * and `inputSchema` how it is checked, and described to the model. Must validate synchronously.
   * @default none
   */
  readonly schema?: StandardSchema<Input> | undefined;
  /** Explains the tool to the model. @default none */
  readonly description?: string | undefined;
  /** Describes the tool's input to the model: the JSON schema of an object. @default that of `schema`, if it has one */
  readonly inputSchema?: JsonSchema | undefined;
  /** The most characters of an `answer`; a longer one is cut off and says so. @default 50000 */
  readonly maxAnswerChars?: number | undefined;
}

// biome-ignore lint/suspicious/noExplicitAny: stands for every tool; its own types are inferred from it
export type AnyTool = Tool<any, any, unknown>;

/** The tools of one agent, by name. */
export interface ToolSet {
  readonly [name: string]: AnyTool;
}

/** How a tool's input is described to the model. */
export const inputSchemaOf = ({ inputSchema, schema }: AnyTool): JsonSchema | undefined =>
  inputSchema ?? (schema === undefined ? undefined : jsonSchemaOf(schema));

export const scopeOf = (tool: AnyTool): ToolScope => tool.scope ?? 'instance';

/** The client of a tool. */
export type ToolClient<T> = T extends { connect(...given: never): infer Made } ? Awaited<Made> : never;
/** The input of a tool. */
export type ToolInput<T> = T extends { call(client: never, input: infer Input, ...given: never): unknown }
  ? Input
  : never;
/** The result of a tool's call. */
export type ToolResult<T> = T extends { call(...given: never): infer Given } ? Awaited<Given> : never;

/**
 * Infers the parameters of a tool's functions from what its `connect` and `parse` return, or from a `call` whose
 * parameters are all annotated.
 */
type Inferring<Clients, Inputs> = {
  readonly [N in keyof Clients]: Tool<Clients[N], N extends keyof Inputs ? Inputs[N] : unknown, unknown>;
} & {
  readonly [N in keyof Inputs]: {
    parse?(input: unknown): Inputs[N];
    readonly schema?: StandardSchema<Inputs[N]> | undefined;
    call?(client: never, input: Inputs[N], context: never): unknown;
  };
};

/** Rejects what inference accepts: a misspelt option, and functions whose parameters do not fit one another. */
type Checked<Tools> = {
  readonly [N in keyof Tools]: {
    readonly [O in Exclude<
      keyof Tools[N],
      keyof AnyTool
    >]: Mistake<`there is no tool option "${O & string}"`>;
  } & Takes<
    Tools[N],
    'call' | 'disconnect' | 'reset' | 'check',
    ToolClient<Tools[N]>,
    'takes another client than `connect` returns'
  > &
    Takes<Tools[N], 'cacheKey' | 'weight', ToolInput<Tools[N]>, 'takes another input than `call`'> &
    Parses<Tools[N]>;
};

/** A type that nothing has, so that the compiler's error shows the message. */
interface Mistake<Message> {
  readonly error: Message;
}

/** `unknown` if those functions of a tool take `Given`, or else a type whose error names the mistake. */
type Takes<T, Functions extends string, Given, Message> = {
  readonly [F in Functions]?: F extends keyof T
    ? NonNullable<T[F]> extends (first: infer First, ...others: never) => unknown
      ? [Given] extends [First]
        ? unknown
        : Mistake<Message>
      : unknown
    : unknown;
};

type Parses<T> = T extends { parse(input: never): infer Parsed }
  ? [Parsed] extends [ToolInput<T>]
    ? unknown
    : { readonly parse: Mistake<'returns another input than `call` takes'> }
  : T extends { schema: StandardSchema<infer Output> }
    ? [Output] extends [ToolInput<T>]
      ? unknown
      : { readonly schema: Mistake<'describes another input than `call` takes'> }
    : unknown;

/** Tools as they were defined, by name, with everything inferred. */
export type DefinedTools<Tools> = {
  readonly [N in keyof Tools]: Tool<ToolClient<Tools[N]>, ToolInput<Tools[N]>, ToolResult<Tools[N]>>;
};

const CHECKS: Checks<AnyTool> = {
  scope: (option, value) => oneOf(option, value, ['shared', 'instance', 'task']),
  connect: callable,
  disconnect: callable,
  reset: callable,
  check: callable,
  call: callable,
  gate: (option, value) => callable(`${option}.run`, (value as ToolGate | null)?.run),
  cacheKey: callable,
  weight: callable,
  timeoutMs: positiveMs,
  parse: callable,
  schema: (option, value) => {
    if (typeof (value as StandardSchema | null)?.['~standard']?.validate !== 'function')
      throw new TypeError(refusal(option, 'a Standard Schema', value));
  },
  description: text,
  inputSchema: (option, value) => {
    if (!isRecord(value)) throw new TypeError(refusal(option, 'a JSON schema', value));
  },
  maxAnswerChars: (option, value) => wholeNumber(option, value, 200),
};

/** An object, and no array. */
export const isRecord = (value: unknown): boolean =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** The function names that the usual model services accept. */
const NAME = /^[A-Za-z0-9_-]{1,64}$/;

/**
 * Defines the tools of one agent. Names, clients, inputs and results are inferred.
 *
 * The input is what `schema` describes, `call` annotates or `parse` returns; `cacheKey` and `weight` are checked against it. TypeScript
 * cannot infer two parameters inside one object, so annotate them, or write the tool with `defineTool`, which infers
 * both: the context of `connect` (`({ signal }: ConnectContext) => …`), and an input that `cacheKey` or `weight` does not
 * destructure (`(input: { query: string }) => …`).
 *
 * @throws {TypeError | RangeError} naming the tool and the option that is wrong
 *
 * @example
 * const tools = defineTools({
 *   search: {
 *     connect: () => new SearchClient(),
 *     gate: serper,
 *     timeoutMs: 30_000,
 *     call: (client, input: { query: string }, { key, signal }) => client.search(input.query, { key, signal }),
 *     description: 'Searches the web.',
 *     inputSchema: { type: 'object', properties: { query: { type: 'string' } }, required: ['query'] },
 *   },
 * });
 */
export function defineTools<Clients, Inputs, Tools>(
  tools: Tools & Inferring<Clients, Inputs> & Checked<Tools>,
): DefinedTools<Tools> {
  checkTools('tools', tools as ToolSet);
  return Object.freeze({ ...tools }) as unknown as DefinedTools<Tools>;
}

/**
 * Defines one tool, which `defineTools` takes under a name. All parameters are inferred; write `cacheKey` and `weight`
 * below `call`.
 *
 * @throws {TypeError | RangeError} naming the option that is wrong
 *
 * @example
 * export const browse = defineTool({
 *   scope: 'task',
 *   connect: ({ signal }) => openBrowser({ signal }),
 *   disconnect: (browser) => browser.close(),
 *   call: (browser, input: { url: string }) => browser.read(input.url),
 * });
 */
export function defineTool<Client, Input, Result>(
  tool: Tool<Client, Input, Result>,
): Tool<Client, Input, Result> {
  checkTool('tool', tool as AnyTool);
  return tool;
}

/** Rejects wrong tools. */
export function checkTools(option: string, tools: ToolSet): void {
  if (!isRecord(tools)) throw new TypeError(refusal(option, 'an object of tools by name', tools));
  for (const [name, tool] of Object.entries(tools)) checkTool(name, tool);
}

function checkTool(name: string, tool: AnyTool): void {
  if (!NAME.test(name)) {
    throw new TypeError(refusal("a tool's name", '1 to 64 of A-Z, a-z, 0-9, _ and -', name));
  }
  const known = Object.keys(CHECKS) as (keyof AnyTool)[];
  const of = (option: keyof AnyTool): string => `${name}.${option}`;
  options(`tool ${name}`, tool, known);
  for (const option of known) {
    const isRequired = option === 'connect' || option === 'call';
    if (isRequired || tool[option] !== undefined) CHECKS[option](of(option), tool[option]);
  }
  const scope = scopeOf(tool);
  for (const option of ['reset', 'check'] as const) {
    if (tool[option] !== undefined && scope !== 'instance') {
      throw new TypeError(
        `\`${of(option)}\` needs a client that serves several tasks: scope "instance", not "${scope}"`,
      );
    }
  }
  for (const option of ['cacheKey', 'weight'] as const) {
    if (tool[option] !== undefined && tool.gate === undefined) {
      throw new TypeError(`\`${of(option)}\` needs a gate, and tool ${name} has none`);
    }
  }
  if (tool.schema !== undefined && tool.parse !== undefined)
    throw new TypeError(`Expected \`${of('schema')}\` or \`${of('parse')}\`, not both`);
}
