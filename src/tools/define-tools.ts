import {
  callable,
  durationMs,
  oneOf,
  optional,
  options,
  refusal,
  text,
  wholeNumber,
} from '../internal/validate.js';
import type { ConnectContext } from './connection.js';
import type { ToolGate } from './tool-gate.js';

/**
 * How long a tool's client lives, and who shares it: `shared` is one for all instances of a factory, `instance` one for
 * each pipeline, `task` one for each lease, made when first used and gone with the lease.
 */
export type ToolScope = 'shared' | 'instance' | 'task';

/** A JSON schema. */
export type JsonSchema = Readonly<Record<string, unknown>>;

/** What one attempt of a call is given. */
export interface ToolCallContext {
  /** Aborts when the call's time is up, its caller aborts it, or its lease ends. */
  readonly signal: AbortSignal;
  /** The key that the gate chose for this attempt; empty where there is no gate, or it has no keys. */
  readonly key: string;
  /** The task that holds the pipeline. */
  readonly taskId: string | undefined;
  /** Counts from 1. */
  readonly attempt: number;
  /** Tells the gate what the call weighed in the end, where `weight` was an estimate. Without a gate it does nothing. */
  settle(actual: number): void;
}

/** What `disconnect`, `reset` and `check` are given. */
export interface ToolClientContext {
  /** Aborts when their time is up. */
  readonly signal: AbortSignal;
}

/**
 * One thing that an agent can call, on a client of the host's own.
 *
 * Tools of one scope that give the same `connect` function share its client: several tools of one browser, one sandbox
 * or one MCP server. They must give the same `disconnect`, `reset` and `check` too.
 */
export interface Tool<Client, Input, Result> {
  /** @default 'instance' */
  readonly scope?: ToolScope;
  /** Makes the client. */
  connect(context: ConnectContext): Client | PromiseLike<Client>;
  /** Lets the client go. Failing is reported (`tool:disconnectFailed`) and otherwise harmless. */
  disconnect?(client: Client, context: ToolClientContext): unknown;
  /** Clears a task's traces off a client of scope `instance` before the next task. Failing replaces the instance. */
  reset?(client: Client, context: ToolClientContext): unknown;
  /** Whether a client of scope `instance` is still good; anything but `true` replaces the instance. */
  check?(client: Client, context: ToolClientContext): boolean | PromiseLike<boolean>;
  /** Makes the call. With a gate it is one attempt, and the gate decides whether there is another. */
  call(client: Client, input: Input, context: ToolCallContext): Result | PromiseLike<Result>;
  /** The guard of the service behind the tool: a `ServiceGate`, or anything with its `run`. */
  readonly gate?: ToolGate;
  /** What the gate may answer this call by from its cache; `undefined` for a call of its own. */
  cacheKey?(input: Input): string | undefined;
  /** What the call counts for in the gate's windows of weight. */
  weight?(input: Input): number;
  /** Milliseconds that a whole call may take: making the client, waiting in the gate and retries. @default 300000 */
  readonly timeoutMs?: number;
  /** Reads what a model gave as input, at once. What it throws is the agent's answer. Only `answer` asks it. */
  parse?(input: unknown): Input;
  /** Tells the model what the tool is for. */
  readonly description?: string;
  /** Tells the model what input the tool takes: the JSON schema of an object. */
  readonly inputSchema?: JsonSchema;
  /** Characters of `answer` at most; the rest is cut off, and the agent is told so. @default 50000 */
  readonly maxAnswerChars?: number;
}

// biome-ignore lint/suspicious/noExplicitAny: stands for every tool; its own types are inferred from it
export type AnyTool = Tool<any, any, unknown>;

/** The tools of one agent, by name. */
export interface ToolSet {
  readonly [name: string]: AnyTool;
}

export const scopeOf = (tool: AnyTool): ToolScope => tool.scope ?? 'instance';

/** The client of a tool. */
export type ToolClient<T> = T extends { connect(...given: never): infer Made } ? Awaited<Made> : never;
/** The input of a tool. */
export type ToolInput<T> = T extends { call(client: never, input: infer Input, ...given: never): unknown }
  ? Input
  : never;
/** What a tool's call gives. */
export type ToolResult<T> = T extends { call(...given: never): infer Given } ? Awaited<Given> : never;

/** Lets the parameters of a tool's functions be inferred from what its `connect` and `parse` give. */
type Inferring<Clients, Inputs> = {
  readonly [N in keyof Clients]: Tool<Clients[N], N extends keyof Inputs ? Inputs[N] : unknown, unknown>;
} & { readonly [N in keyof Inputs]: { parse?(input: unknown): Inputs[N] } };

/** What inference lets pass: a misspelt option, and functions that take another client than `connect` makes. */
type Checked<Tools> = {
  readonly [N in keyof Tools]: { readonly [Option in Exclude<keyof Tools[N], keyof AnyTool>]: never } & Fits<
    Tools[N],
    ToolClient<Tools[N]>
  >;
};
type Fits<T, Client> = T extends { call(client: infer Taken, ...given: never): unknown }
  ? [Client] extends [Taken]
    ? T extends { disconnect(client: infer Taken, ...given: never): unknown }
      ? [Client] extends [Taken]
        ? unknown
        : { readonly disconnect: 'takes another client than `connect` makes' }
      : unknown
    : { readonly call: 'takes another client than `connect` makes' }
  : unknown;

/** Tools as they were defined, by name, with everything inferred. */
export type DefinedTools<Tools> = {
  readonly [N in keyof Tools]: Tool<ToolClient<Tools[N]>, ToolInput<Tools[N]>, ToolResult<Tools[N]>>;
};

const OPTIONS: readonly (keyof AnyTool)[] = [
  'scope',
  'connect',
  'disconnect',
  'reset',
  'check',
  'call',
  'gate',
  'cacheKey',
  'weight',
  'timeoutMs',
  'parse',
  'description',
  'inputSchema',
  'maxAnswerChars',
];

/** What the usual model services take as the name of a function. */
const NAME = /^[A-Za-z0-9_-]{1,64}$/;

/**
 * Defines the tools of one agent. Names, clients, inputs and results are inferred.
 *
 * `call`'s input is what its annotation says, or what `parse` gives. Where `connect` takes its context, say so
 * (`({ signal }: ConnectContext) => …`) or write the tool with `defineTool`: TypeScript cannot infer the client otherwise.
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
  if (typeof tools !== 'object' || tools === null || Array.isArray(tools)) {
    throw new TypeError(refusal('tools', 'an object of tools by name', tools));
  }
  for (const [name, tool] of Object.entries(tools)) checkTool(name, tool as AnyTool);
  return Object.freeze({ ...tools }) as unknown as DefinedTools<Tools>;
}

/**
 * Defines one tool by itself, in a file of its own for instance. It goes into `defineTools` by name.
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

/** Refuses a wrong tool. */
export function checkTool(name: string, tool: AnyTool): void {
  if (!NAME.test(name)) {
    throw new TypeError(
      refusal("a tool's name", '1 to 64 of A-Z, a-z, 0-9, _ and -, as models take it', name),
    );
  }
  const of = (option: keyof AnyTool): string => `${name}.${option}`;
  options(`tool ${name}`, tool, OPTIONS);
  callable(of('connect'), tool.connect);
  callable(of('call'), tool.call);
  optional(of('scope'), tool.scope, (option, value) => oneOf(option, value, ['shared', 'instance', 'task']));
  const scope = scopeOf(tool);
  for (const option of ['disconnect', 'reset', 'check', 'cacheKey', 'weight', 'parse'] as const) {
    optional(of(option), tool[option], callable);
  }
  for (const option of ['reset', 'check'] as const) {
    if (tool[option] !== undefined && scope !== 'instance') {
      throw new TypeError(
        `\`${of(option)}\` needs a client that goes from task to task: scope "instance", not "${scope}"`,
      );
    }
  }
  for (const option of ['cacheKey', 'weight'] as const) {
    if (tool[option] !== undefined && tool.gate === undefined) {
      throw new TypeError(`\`${of(option)}\` means something to a gate only, and tool ${name} has none`);
    }
  }
  optional(of('gate'), tool.gate, (option, gate) => callable(`${option}.run`, gate?.run));
  optional(of('timeoutMs'), tool.timeoutMs, (option, value) => durationMs(option, value, 1));
  optional(of('description'), tool.description, text);
  optional(of('maxAnswerChars'), tool.maxAnswerChars, (option, value) => wholeNumber(option, value, 200));
  optional(of('inputSchema'), tool.inputSchema, (option, value) => {
    if (typeof value !== 'object' || value === null || Array.isArray(value)) {
      throw new TypeError(refusal(option, 'a JSON schema', value));
    }
  });
}
