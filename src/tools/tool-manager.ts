/**
 * The tools: what an agent can call during one lease.
 *
 * - `define-tools.ts`: the definition of a tool, and the types inferred from it
 * - `pipeline-factory.ts`: the callbacks that make a `PipelinePool` one of agent pipelines
 * - `pipeline-instance.ts`: one instance with its clients, and a session per lease
 * - `clients.ts`: the connections to clients, by scope, and the session of a task
 * - `tool-manager.ts` (here): the tools of one agent for one lease
 * - `tool-call.ts`: one call, through the tool's gate
 * - `schema.ts`: Standard Schemas of inputs. `expect-ok.ts`: `expectOk`, for tools that use `fetch`
 * - `tool-answer.ts`: inputs, results and errors as text for an agent
 */
import { ToolFailedError, ToolUnknownError } from '../errors.js';
import { checkSharedCallOptions } from '../gate/options.js';
import type { TaskIds } from '../hooks/events.js';
import type { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { anySignal } from '../internal/abort.js';
import { nowMs } from '../internal/clock.js';
import { redactError, redactKeys } from '../internal/redaction.js';
import {
  abortSignal,
  options as checkOptions,
  optional,
  refusal,
  synchronous,
  text,
} from '../internal/validate.js';
import { currentScope, inheritedPriority, type RequestContext } from '../request/current-request.js';
import type { TaskSession } from './clients.js';
import {
  type AnyTool,
  inputSchemaOf,
  type ToolClient,
  type ToolInput,
  type ToolResult,
  type ToolSet,
} from './define-tools.js';
import { validated } from './schema.js';
import { cutText, failureText, readInput, resultText } from './tool-answer.js';
import { callTool, type ToolOutcome } from './tool-call.js';

const DEFAULT_TIMEOUT_MS = 300_000;
const DEFAULT_ANSWER_CHARS = 50_000;

/** Options of one call. */
export interface ToolCallOptions {
  /** Aborts the call wherever it is; it rejects with `signal.reason`. @default that of the current request */
  readonly signal?: AbortSignal | undefined;
  /** Milliseconds that the whole call may take. @default the tool's `timeoutMs` */
  readonly timeoutMs?: number | undefined;
  /** Passed to the gate: higher goes first; an integer. @default that of the current request, or 0 */
  readonly priority?: number | undefined;
  /** The id that the model gave the call (`tool_call.id`), for events and traces. @default none */
  readonly modelCallId?: string | undefined;
}

/** The names of the tools of a set. */
export type ToolName<T> = keyof T & string;

/** One call of any tool of a set, for `callAll`. */
export type ToolCall<T> = {
  readonly [N in ToolName<T>]: {
    readonly name: N;
    readonly modelCallId?: string | undefined;
  } & (undefined extends ToolInput<T[N]>
    ? { readonly input?: ToolInput<T[N]> }
    : { readonly input: ToolInput<T[N]> });
}[ToolName<T>];

/** The results of `callAll`, in the order of the calls. */
export type ToolResults<T, Calls extends readonly ToolCall<T>[]> = {
  -readonly [I in keyof Calls]: PromiseSettledResult<ToolResult<T[Calls[I]['name']]>>;
};

/** What follows the name in `call`: the input is optional if the tool takes none. */
export type ToolArguments<Input> = undefined extends Input
  ? [input?: Input, options?: ToolCallOptions]
  : [input: Input, options?: ToolCallOptions];

/** A function as described to a model: one of the `tools` of a chat completion. */
export interface ToolDefinition {
  type: 'function';
  function: { name: string; description?: string; parameters?: Record<string, unknown> };
}

/** What a tool manager takes from its instance. */
export interface ToolManagerDependencies<T> {
  readonly name: string;
  readonly tools: T;
  readonly session: TaskSession;
  readonly hooks: LifecycleHooks;
  readonly nextCallId: () => number;
}

/**
 * The tools of one agent, for one lease.
 *
 * Invariants:
 * - It serves one lease. Once that has ended, every call rejects with `LeaseReleasedError`, and running calls are aborted.
 * - Every call settles within its time: with its result, or a typed error.
 * - Its events carry neither inputs nor results, and of errors only a redacted summary.
 *
 * @example
 * const tools = pipeline.mainAgentToolManager;
 * const pages = await tools.call('search', { query: 'tidal power' }, { signal });
 * const text = await tools.answer(toolCall.function.name, toolCall.function.arguments, { signal });
 */
export class ToolManager<T extends ToolSet> {
  /** The `source` of its events and errors. */
  readonly name: string;
  readonly #dependencies: ToolManagerDependencies<T>;

  /** @internal Created by `pipelineFactory`. */
  constructor(dependencies: ToolManagerDependencies<T>) {
    this.name = dependencies.name;
    this.#dependencies = dependencies;
  }

  /**
   * Calls a tool.
   *
   * @throws {ToolUnknownError} if there is no such tool
   * @throws {ToolTimeoutError} if it takes longer than `timeoutMs`
   * @throws {ToolFailedError} if it fails; the `cause` is the error that its client threw
   * @throws {LeaseReleasedError} if the lease has ended
   * @throws `signal.reason` when the caller aborts
   *
   * @example
   * const pages = await tools.call('search', { query: 'tidal power' }, { signal, timeoutMs: 30_000 });
   */
  async call<N extends ToolName<T>>(
    name: N,
    ...[input, options]: ToolArguments<ToolInput<T[N]>>
  ): Promise<ToolResult<T[N]>> {
    return (await this.#result(name, input, options)) as ToolResult<T[N]>;
  }

  /**
   * Makes several calls concurrently. Each settles independently; the results are in the order of the calls, as those of
   * `Promise.allSettled`.
   *
   * @example
   * const [pages, page] = await tools.callAll([
   *   { name: 'search', input: { query: 'tidal power' } },
   *   { name: 'read', input: { url: 'https://example.org' } },
   * ]);
   * if (pages.status === 'fulfilled') use(pages.value);
   */
  async callAll<const Calls extends readonly ToolCall<T>[]>(
    calls: Calls,
    options?: Omit<ToolCallOptions, 'modelCallId'>,
  ): Promise<ToolResults<T, Calls>> {
    if (!Array.isArray(calls)) throw new TypeError(refusal('calls', 'an array of { name, input }', calls));
    const results = await Promise.allSettled(
      calls.map(async ({ name, input, modelCallId }: ToolCall<T> & { input?: unknown }) => {
        const own = modelCallId === undefined ? options : { ...options, modelCallId };
        return this.#result(name, input, own);
      }),
    );
    return results as ToolResults<T, Calls>;
  }

  /**
   * Calls a tool for an agent, with the name and the arguments that its model produced, and resolves with text in either
   * case: the result, or the reason of the failure. Arguments may be JSON text, as models send them.
   *
   * @throws `signal.reason` when the caller aborts
   * @throws {LeaseReleasedError} if the lease has ended
   *
   * @example
   * const { id: modelCallId, function: { name, arguments: input } } = toolCall;
   * const text = await tools.answer(name, input, { signal, modelCallId });
   * messages.push({ role: 'tool', tool_call_id: modelCallId, content: text });
   */
  async answer(
    name: ToolName<T> | (string & {}),
    input?: unknown,
    options?: ToolCallOptions,
  ): Promise<string> {
    const tool = this.#find(name);
    if (tool === undefined) return cutText(this.#unknown(name).message, DEFAULT_ANSWER_CHARS);
    const most = tool.maxAnswerChars ?? DEFAULT_ANSWER_CHARS;
    const withReason = (what: string, error: unknown): string =>
      cutText(`${what}: ${failureText(redactError(error, this.#dependencies.hooks.redact))}`, most);

    let read: unknown;
    try {
      read = readInput(input);
      if (tool.schema !== undefined) read = validated(name, tool.schema, read);
      else if (tool.parse !== undefined) read = synchronous(`${name}.parse`, tool.parse(read));
    } catch (error) {
      return withReason(`The input of tool ${name} cannot be used`, error);
    }
    const outcome = await this.#run(name, tool, read, options);
    switch (outcome.kind) {
      case 'ok': {
        const text = resultText(outcome.value);
        return cutText(redactKeys(text, most), most, text.length);
      }
      case 'timeout':
        return `${outcome.error.message} and was stopped.`;
      case 'failed':
        return withReason(`Tool ${name} failed`, outcome.error.cause);
      case 'aborted':
        throw outcome.error;
    }
  }

  /**
   * The client of a tool, connected now if it is not yet. It is the host's own object: code that keeps it beyond the lease
   * shares it with the next task, unless the tool's scope is `task`.
   *
   * @throws {ToolUnknownError | ToolFailedError | LeaseReleasedError}
   *
   * @example
   * const browser = await tools.client('browse');
   */
  async client<N extends ToolName<T>>(
    name: N,
    options: { readonly signal?: AbortSignal | undefined } = {},
  ): Promise<ToolClient<T[N]>> {
    const tool = this.#tool(name);
    checkOptions('client', options, ['signal']);
    const { session } = this.#dependencies;
    const ended = anySignal(session.ended.signal, optional('signal', options.signal, abortSignal));
    try {
      return (await session.client({ name, tool }, ended.signal)) as ToolClient<T[N]>;
    } catch (error) {
      if (ended.signal.aborted) throw ended.signal.reason;
      throw new ToolFailedError(this.name, name, error, 'connect');
    } finally {
      ended.unlink();
    }
  }

  /**
   * The tools as described to models, for the `tools` of an OpenAI-style chat completion.
   *
   * @example
   * await openai.chat.completions.create({ model, messages, tools: tools.definitions() });
   */
  definitions(): ToolDefinition[] {
    return Object.entries(this.#dependencies.tools).map(([name, tool]) => {
      const { description } = tool;
      const parameters = inputSchemaOf(tool);
      return {
        type: 'function',
        function: {
          name,
          ...(description === undefined ? {} : { description }),
          ...(parameters === undefined ? {} : { parameters }),
        },
      };
    });
  }

  async #result(name: string, input: unknown, options: ToolCallOptions | undefined): Promise<unknown> {
    const outcome = await this.#run(name, this.#tool(name), input, options);
    if (outcome.kind === 'ok') return outcome.value;
    throw outcome.error;
  }

  async #run(
    name: string,
    tool: AnyTool,
    input: unknown,
    options: ToolCallOptions = {},
  ): Promise<ToolOutcome> {
    const scope = currentScope();
    const request = scope?.requestId === undefined ? undefined : scope;
    checkOptions('the options of a call', options, ['signal', 'timeoutMs', 'priority', 'modelCallId']);
    checkSharedCallOptions(options, 1);
    optional('modelCallId', options.modelCallId, text);
    const { timeoutMs, modelCallId } = options;
    const signal = options.signal ?? request?.signal;
    const priority = options.priority ?? (request && inheritedPriority(request));
    const { session, hooks, nextCallId } = this.#dependencies;
    // A call that ends before it begins emits no event.
    if (session.ended.aborted) return { kind: 'aborted', error: session.ended.reason };
    if (signal?.aborted) return { kind: 'aborted', error: signal.reason };
    const toolCallId = nextCallId();
    const task = session.task.taskId === undefined ? idsOf(request) : session.task;
    const ids = () => ({
      source: this.name,
      tool: name,
      instanceId: session.instanceId,
      toolCallId,
      ...task,
      ...(modelCallId === undefined ? {} : { modelCallId }),
    });
    const startedMs = nowMs();
    if (hooks.hasListeners('tool:started')) hooks.emit('tool:started', ids());
    const outcome = await callTool({
      source: this.name,
      wanted: { name, tool },
      input,
      session,
      task,
      signal,
      timeoutMs: timeoutMs ?? tool.timeoutMs ?? DEFAULT_TIMEOUT_MS,
      priority,
      budget: scope?.budget,
      toolCallId,
    });
    if (hooks.hasListeners('tool:finished')) {
      hooks.emit('tool:finished', {
        outcome: outcome.kind,
        durationMs: nowMs() - startedMs,
        ...ids(),
        ...(outcome.kind === 'ok' ? {} : { error: redactError(outcome.error, hooks.redact) }),
      });
    }
    return outcome;
  }

  #tool(name: string): AnyTool {
    const tool = this.#find(name);
    if (tool === undefined) throw this.#unknown(name);
    return tool;
  }

  #find(name: string): AnyTool | undefined {
    const { tools } = this.#dependencies;
    return Object.hasOwn(tools, name) ? tools[name] : undefined;
  }

  #unknown(name: string): ToolUnknownError {
    return new ToolUnknownError(this.name, name, Object.keys(this.#dependencies.tools));
  }
}

/** The ids of a request, for a lease that was acquired without any. */
function idsOf(request: RequestContext | undefined): TaskIds {
  if (request === undefined) return {};
  const { taskId, requestId, tenant } = request;
  return { taskId, requestId, ...(tenant === undefined ? {} : { tenant }) };
}
