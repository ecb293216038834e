import { ToolFailedError, ToolUnknownError } from '../errors.js';
import type { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { nowMs } from '../internal/clock.js';
import { causeOf } from '../internal/told-error.js';
import {
  abortSignal,
  options as checkOptions,
  durationMs,
  optional,
  refusal,
  wholeNumber,
} from '../internal/validate.js';
import type { AnyTool, JsonSchema, ToolClient, ToolInput, ToolResult, ToolSet } from './define-tools.js';
import { CallMask, withoutKeys, withoutSecrets } from './masking.js';
import type { TaskSession } from './task-session.js';
import { cutText, failureText, readInput, resultText } from './tool-answer.js';
import { callTool, either, type ToolOutcome } from './tool-call.js';

const DEFAULT_TIMEOUT_MS = 300_000;
const DEFAULT_ANSWER_CHARS = 50_000;

/** How one call is made. */
export interface ToolCallOptions {
  /** Ends the call wherever it is; it rejects with `signal.reason`. */
  readonly signal?: AbortSignal;
  /** Milliseconds that the whole call may take. @default the tool's `timeoutMs` */
  readonly timeoutMs?: number;
  /** Told to the gate: higher goes first; a whole number. @default 0 */
  readonly priority?: number;
}

/** The names of the tools of a set. */
export type ToolName<T> = keyof T & string;

/** One call of any tool of a set, for `callAll`. */
export type ToolCall<T> = {
  readonly [N in ToolName<T>]: { readonly name: N } & (undefined extends ToolInput<T[N]>
    ? { readonly input?: ToolInput<T[N]> }
    : { readonly input: ToolInput<T[N]> });
}[ToolName<T>];

/** What `callAll` gives for each call, in their order. */
export type ToolResults<T, Calls extends readonly ToolCall<T>[]> = {
  -readonly [I in keyof Calls]: PromiseSettledResult<ToolResult<T[Calls[I]['name']]>>;
};

/** What follows the name in `call`: the input may be left out where the tool takes none. */
export type ToolArguments<Input> = undefined extends Input
  ? [input?: Input, options?: ToolCallOptions]
  : [input: Input, options?: ToolCallOptions];

/** A function as models are told of it: one of the `tools` of a chat completion. */
export interface ToolDefinition {
  type: 'function';
  function: { name: string; description?: string; parameters?: Record<string, unknown> };
}

/** What a manager is made of. */
export interface ToolManagerParts<T> {
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
 * - It serves the lease that it was made for. Once that has ended, everything it is asked for rejects with
 *   `LeaseReleasedError`, and what was under way is aborted.
 * - Every call settles: with its result, or a typed error, within its time.
 * - Keys and inputs are masked in its errors and events.
 *
 * @example
 * const tools = pipeline.mainAgentToolManager;
 * const pages = await tools.call('search', { query: 'tidal power' }, { signal });
 * const text = await tools.answer(toolCall.function.name, toolCall.function.arguments, { signal });
 */
export class ToolManager<T extends ToolSet> {
  /** Told as `source` in events. */
  readonly name: string;
  readonly #tools: T;
  readonly #session: TaskSession;
  readonly #hooks: LifecycleHooks;
  readonly #nextCallId: () => number;

  /** Made by `pipelineFactory`. */
  constructor({ name, tools, session, hooks, nextCallId }: ToolManagerParts<T>) {
    this.name = name;
    this.#tools = tools;
    this.#session = session;
    this.#hooks = hooks;
    this.#nextCallId = nextCallId;
  }

  /**
   * Calls a tool.
   *
   * @throws {ToolUnknownError} there is no such tool
   * @throws {ToolTimeoutError} it took longer than `timeoutMs`
   * @throws {ToolFailedError} it failed; the `cause` is what its client threw, masked if it showed keys or the input
   * @throws {LeaseReleasedError} the lease has ended
   * @throws `signal.reason` when the caller aborts
   */
  async call<N extends ToolName<T>>(
    name: N,
    ...[input, options]: ToolArguments<ToolInput<T[N]>>
  ): Promise<ToolResult<T[N]>> {
    const outcome = await this.#run(name, this.#tool(name), input, options);
    if (outcome.kind === 'ok') return outcome.value as ToolResult<T[N]>;
    throw outcome.error;
  }

  /**
   * Makes several calls at once. Each settles by itself; the results come in the order of the calls, as
   * `Promise.allSettled` gives them.
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
    options?: ToolCallOptions,
  ): Promise<ToolResults<T, Calls>> {
    if (!Array.isArray(calls)) throw new TypeError(refusal('calls', 'an array of { name, input }', calls));
    const results = await Promise.allSettled(
      calls.map(async ({ name, input }: { name: string; input?: unknown }) => {
        const outcome = await this.#run(name, this.#tool(name), input, options);
        if (outcome.kind === 'ok') return outcome.value;
        throw outcome.error;
      }),
    );
    return results as ToolResults<T, Calls>;
  }

  /**
   * Calls a tool for an agent, by the name and with the arguments that its model gave, and answers with a text in either
   * case: the result, or what went wrong. Arguments may be JSON text, as models send them.
   *
   * Rejects only where there is no agent left to answer: the caller has aborted (`signal.reason`) or the lease has ended
   * (`LeaseReleasedError`).
   */
  async answer(
    name: ToolName<T> | (string & {}),
    input?: unknown,
    options?: ToolCallOptions,
  ): Promise<string> {
    if (!Object.hasOwn(this.#tools, name))
      return new ToolUnknownError(name, Object.keys(this.#tools)).message;
    const tool = this.#tool(name);
    const most = tool.maxAnswerChars ?? DEFAULT_ANSWER_CHARS;
    const withReason = (what: string, reason: string): string =>
      cutText(`${what}: ${withoutSecrets(reason, tool.gate)}`, most);

    let read: unknown;
    try {
      read = readInput(input);
      if (tool.parse !== undefined) read = parsed(name, tool.parse(read));
    } catch (error) {
      return withReason(`The input of tool ${name} cannot be used`, failureText(error));
    }
    const outcome = await this.#run(name, tool, read, options);
    switch (outcome.kind) {
      case 'ok':
        return cutText(withoutKeys(resultText(outcome.value), tool.gate), most);
      case 'timeout':
        return `${outcome.error.message} and was stopped.`;
      case 'failed':
        return withReason(`Tool ${name} failed`, outcome.reason());
      case 'aborted':
        throw outcome.error;
    }
  }

  /**
   * The client of a tool, made now if it has none yet. It is the host's own object: whoever keeps it beyond the lease
   * shares it with the next task, unless the tool's scope is `task`.
   *
   * @throws {ToolUnknownError | ToolFailedError | LeaseReleasedError}
   */
  async client<N extends ToolName<T>>(
    name: N,
    options: { readonly signal?: AbortSignal } = {},
  ): Promise<ToolClient<T[N]>> {
    const tool = this.#tool(name);
    checkOptions('client', options, ['signal']);
    const ended = either(this.#session.signal, optional('signal', options.signal, abortSignal));
    try {
      return (await this.#session.client({ name, tool }, ended.signal)) as ToolClient<T[N]>;
    } catch (error) {
      if (ended.signal.aborted) throw ended.signal.reason;
      throw new ToolFailedError(name, causeOf(error, new CallMask(tool.gate)), 'connect');
    } finally {
      ended.unlink();
    }
  }

  /** The tools as models are told of them, for the `tools` of an OpenAI-style chat completion. */
  definitions(): ToolDefinition[] {
    return Object.entries(this.#tools).map(([name, { description, inputSchema }]) => ({
      type: 'function',
      function: {
        name,
        ...(description === undefined ? {} : { description }),
        ...(inputSchema === undefined ? {} : { parameters: inputSchema satisfies JsonSchema }),
      },
    }));
  }

  async #run(
    name: string,
    tool: AnyTool,
    input: unknown,
    options: ToolCallOptions = {},
  ): Promise<ToolOutcome> {
    const { signal, timeoutMs, priority } = checkCallOptions(options);
    const session = this.#session;
    // What has ended before it began is told to nobody: it was no call.
    for (const ended of [session.signal, signal]) {
      if (ended?.aborted) return { kind: 'aborted', error: ended.reason, told: () => undefined };
    }
    const toolCallId = this.#nextCallId();
    const { instanceId, task } = session;
    const told = { ...task, source: this.name, tool: name, instanceId, toolCallId };
    const startedMs = nowMs();
    if (this.#hooks.hears('tool:started')) this.#hooks.emit('tool:started', told);
    const outcome = await callTool({
      wanted: { name, tool },
      input,
      session,
      signal,
      timeoutMs: timeoutMs ?? tool.timeoutMs ?? DEFAULT_TIMEOUT_MS,
      priority,
      toolCallId,
    });
    if (this.#hooks.hears('tool:finished')) {
      this.#hooks.emit('tool:finished', {
        ...told,
        outcome: outcome.kind,
        durationMs: nowMs() - startedMs,
        ...(outcome.kind === 'ok' ? {} : { error: outcome.told() }),
      });
    }
    return outcome;
  }

  #tool(name: string): AnyTool {
    const tool = Object.hasOwn(this.#tools, name) ? this.#tools[name] : undefined;
    if (tool === undefined) throw new ToolUnknownError(name, Object.keys(this.#tools));
    return tool;
  }
}

/** What `parse` gave. A promise would be taken for the input, and its rejection would be nobody's. */
function parsed(name: string, given: unknown): unknown {
  if (typeof (given as PromiseLike<unknown> | null | undefined)?.then !== 'function') return given;
  Promise.resolve(given).catch(() => {});
  throw new TypeError(`Expected \`${name}.parse\` to give the input itself, got a promise`);
}

function checkCallOptions(given: ToolCallOptions): ToolCallOptions {
  checkOptions('the options of a call', given, ['signal', 'timeoutMs', 'priority']);
  optional('signal', given.signal, abortSignal);
  optional('timeoutMs', given.timeoutMs, (option, value) => durationMs(option, value, 1));
  optional('priority', given.priority, (option, value) =>
    wholeNumber(option, value, Number.MIN_SAFE_INTEGER),
  );
  return given;
}
