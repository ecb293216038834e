import { ToolFailedError, type ToolStage, ToolTimeoutError } from '../errors.js';
import { CALL_CONTEXT, CallContext } from '../gate/call-context.js';
import { withinBounds } from '../gate/wait.js';
import type { TaskIds } from '../hooks/events.js';
import { anySignal, withSignal } from '../internal/abort.js';
import { registerKeys } from '../internal/redaction.js';
import { refusal, synchronous } from '../internal/validate.js';
import type { Budget } from '../request/budget.js';
import { isSessionEnd, type NamedTool, type TaskSession } from './clients.js';
import type { ToolGate, ToolGateAttempt, ToolGateOptions } from './define-tools.js';

/** One call, checked and ready to be made. */
export interface ToolCallRequest {
  /** The name of the tool manager. */
  readonly source: string;
  readonly wanted: NamedTool;
  readonly input: unknown;
  readonly session: TaskSession;
  readonly task: TaskIds;
  /** The caller's, not aborted yet. */
  readonly signal: AbortSignal | undefined;
  readonly timeoutMs: number;
  readonly priority: number | undefined;
  readonly budget: Budget | undefined;
  readonly toolCallId: number;
}

/** How a call ended. */
export type ToolOutcome =
  | { readonly kind: 'ok'; readonly value: unknown }
  | { readonly kind: 'failed'; readonly error: ToolFailedError }
  | { readonly kind: 'timeout'; readonly error: ToolTimeoutError }
  /** The caller aborted it, or its lease ended. */
  | { readonly kind: 'aborted'; readonly error: unknown };

/** Tools whose calls do the same, for the cache of a gate: two tools of one name may do different things. */
const callIds = /* @__PURE__ */ new WeakMap<object, number>();
let lastCallId = 0;

/** Makes one call of a tool. Settles in every case within its time, and never rejects. */
export async function callTool(request: ToolCallRequest): Promise<ToolOutcome> {
  const { source, wanted, session, signal, timeoutMs } = request;
  const context = new CallContext({
    signal,
    ownerSignal: session.ended.watchable,
    timeoutMs,
    timeoutError: () => new ToolTimeoutError(source, wanted.name, timeoutMs),
  });
  const call = new ToolCall(request, context);
  try {
    return { kind: 'ok', value: await call.run() };
  } catch (thrown) {
    const endedBy = thrown === context.reason ? context.endedBy : undefined;
    if (endedBy === 'deadline') return { kind: 'timeout', error: thrown as ToolTimeoutError };
    if (endedBy === 'signal') return { kind: 'aborted', error: thrown };
    return { kind: 'failed', error: new ToolFailedError(source, wanted.name, thrown, call.stage) };
  } finally {
    context.end();
  }
}

/** The host's part of a call: its client, its gate, its attempts. */
class ToolCall {
  readonly #request: ToolCallRequest;
  readonly #context: CallContext;
  stage: ToolStage = 'connect';

  constructor(request: ToolCallRequest, context: CallContext) {
    this.#request = request;
    this.#context = context;
  }

  async run(): Promise<unknown> {
    const { wanted, session } = this.#request;
    const context = this.#context;
    context.throwIfAborted();
    const open = session.openClient(wanted);
    const client = open === undefined ? await session.client(wanted, context.signal) : open.client;
    this.stage = 'call';
    const { gate } = wanted.tool;
    // A gate or a client of the host may ignore the signal.
    return withinBounds(
      context,
      gate === undefined
        ? this.#attempt(client, new OnlyAttempt(context), false)
        : this.#throughGate(gate, client),
    );
  }

  async #throughGate(gate: ToolGate, client: unknown): Promise<unknown> {
    const context = this.#context;
    const options = this.#gateOptions();
    // A gate of ours bounds its attempts by this call's context, unless it merges the call with others.
    const isLinked = gate[CALL_CONTEXT] !== true || options.cacheKey !== undefined;
    for (let before: unknown; ; ) {
      let began = false;
      const attempt = (given: ToolGateAttempt): Promise<unknown> => {
        began = true;
        // A gate of ours has registered its keys.
        if (gate[CALL_CONTEXT] !== true && given.key !== undefined) registerKeys([given.key]);
        return this.#attempt(client, given, isLinked);
      };
      try {
        return await gate.run(attempt, options);
      } catch (error) {
        // The gate had merged this call with another task's, which ended with that task's lease. The call is made again,
        // with another or by itself. The same end twice would be a gate that caches failures.
        if (began || context.aborted || !isSessionEnd(error) || error === before) throw error;
        before = error;
      }
    }
  }

  /**
   * One call of the host's code. A gate that merges calls may make it for another task, even when this one's caller has
   * left; but never beyond the lease that the client belongs to. It ends when the host's code does, and not before: until
   * then the service may be busy, and a gate must count it.
   */
  async #attempt(client: unknown, given: ToolGateAttempt, isLinked: boolean): Promise<unknown> {
    const { wanted, input, session, task } = this.#request;
    const { key = '', attempt } = given;
    const linked = isLinked ? new LinkedSignal(session, given) : undefined;
    const reportUsage = (actual: number): void => given.reportUsage(actual);
    const context = withSignal({ key, taskId: task.taskId, attempt, reportUsage }, linked ?? given);
    try {
      session.ended.throwIfAborted();
      // Made a promise once: a lazy thenable would make the call again for each that waits for it.
      const running = Promise.resolve(wanted.tool.call(client, input, context));
      session.track(wanted, running);
      return await running;
    } catch (error) {
      // Whatever the client makes of its signal: other callers of a merged call must see that only this lease ended.
      throw session.ended.aborted ? session.ended.reason : error;
    } finally {
      linked?.unlink();
    }
  }

  #gateOptions(): ToolGateOptions {
    const context = this.#context;
    const { wanted, input, task, priority, budget, toolCallId } = this.#request;
    const { tool } = wanted;
    const weight = tool.weight && synchronous(`${wanted.name}.weight`, tool.weight(input));
    const cacheKey = tool.cacheKey && synchronous(`${wanted.name}.cacheKey`, tool.cacheKey(input));
    // Anything else would be written out as the same text for different inputs.
    if (cacheKey !== undefined && typeof cacheKey !== 'string')
      throw new TypeError(refusal(`${wanted.name}.cacheKey`, 'a function that returns a string', cacheKey));
    const { taskId, requestId, tenant } = task;
    const options = {
      [CALL_CONTEXT]: context,
      // Never earlier than the call's own deadline, so that the error is the call's.
      timeoutMs: Math.max(1, Math.ceil(context.remainingMs)),
      toolCallId,
      ...(priority === undefined ? {} : { priority }),
      ...(weight === undefined ? {} : { weight }),
      ...(cacheKey === undefined ? {} : { cacheKey: `${callIdOf(tool.call)}:${cacheKey}` }),
      ...(taskId === undefined ? {} : { taskId }),
      ...(requestId === undefined ? {} : { requestId }),
      ...(tenant === undefined ? {} : { tenant }),
      ...(budget === undefined ? {} : { budget }),
    };
    return withSignal(options, context);
  }
}

/** The attempt of a call without a gate. */
class OnlyAttempt implements ToolGateAttempt {
  readonly attempt = 1;
  readonly #context: CallContext;

  constructor(context: CallContext) {
    this.#context = context;
  }

  get signal(): AbortSignal {
    return this.#context.signal;
  }

  reportUsage(): void {}
}

/** The signal of an attempt that may be made for other tasks as well: aborts when the lease ends, too. */
class LinkedSignal {
  readonly #session: TaskSession;
  readonly #given: ToolGateAttempt;
  #linked: ReturnType<typeof anySignal> | undefined;

  constructor(session: TaskSession, given: ToolGateAttempt) {
    this.#session = session;
    this.#given = given;
  }

  get signal(): AbortSignal {
    this.#linked ??= anySignal(this.#session.ended.signal, this.#given.signal);
    return this.#linked.signal;
  }

  unlink(): void {
    this.#linked?.unlink();
  }
}

function callIdOf(call: object): number {
  let id = callIds.get(call);
  if (id === undefined) {
    id = ++lastCallId;
    callIds.set(call, id);
  }
  return id;
}
