import { ToolFailedError, type ToolStage, ToolTimeoutError } from '../errors.js';
import { type AbortWatcher, linkedController, unwatchAbort, watchAbort } from '../internal/abort-watch.js';
import { boundedCall } from '../internal/bounded-call.js';
import { nowMs } from '../internal/clock.js';
import { causeOf, copyOf, MASK } from '../internal/told-error.js';
import type { NamedTool } from './connections.js';
import { CallMask, rememberKey } from './masking.js';
import { isSessionEnd, type TaskSession } from './task-session.js';
import { failureText } from './tool-answer.js';
import type { ToolGate, ToolGateAttempt, ToolGateOptions } from './tool-gate.js';

/** One call, checked and ready to be made. */
export interface ToolCallRequest {
  readonly wanted: NamedTool;
  readonly input: unknown;
  readonly session: TaskSession;
  /** The caller's, not aborted yet. */
  readonly signal: AbortSignal | undefined;
  readonly timeoutMs: number;
  readonly priority: number | undefined;
  readonly toolCallId: number;
}

/** How a call ended. `error` is for the caller; `told`, where there is one, makes of it what events tell. */
export type ToolOutcome =
  | { readonly kind: 'ok'; readonly value: unknown }
  /** `reason` says what the host's code threw, for the agent, who gave the input: only what others gave is masked. */
  | {
      readonly kind: 'failed';
      readonly error: ToolFailedError;
      readonly told: () => unknown;
      readonly reason: () => string;
    }
  | { readonly kind: 'timeout'; readonly error: ToolTimeoutError; readonly told: () => unknown }
  /** The caller aborted it, or its lease ended. */
  | { readonly kind: 'aborted'; readonly error: unknown; readonly told: () => unknown };

/** Tools whose calls do the same, as a gate's cache must see it: two tools of one name may do different things. */
const callIds = new WeakMap<object, number>();
let lastCallId = 0;

/** Makes one call of a tool. Settles in every case once the time is up, and never rejects. */
export async function callTool(request: ToolCallRequest): Promise<ToolOutcome> {
  const { wanted, input, session, timeoutMs } = request;
  const ended = either(session.signal, request.signal);
  const mask = new CallMask(wanted.tool.gate, input);
  const work = new ToolWork(request, mask);
  let timeout: ToolTimeoutError | undefined;
  try {
    const value = await boundedCall((signal) => work.run(signal), {
      signal: ended.signal,
      timeoutMs,
      timeoutError: () => {
        timeout = new ToolTimeoutError(wanted.name, timeoutMs);
        return timeout;
      },
    });
    return { kind: 'ok', value };
  } catch (thrown) {
    if (timeout !== undefined && thrown === timeout) {
      return { kind: 'timeout', error: timeout, told: () => timeout };
    }
    if (ended.signal.aborted && thrown === ended.signal.reason) {
      return { kind: 'aborted', error: thrown, told: () => copyOf(thrown, mask) };
    }
    const failure = (cause: unknown): ToolFailedError => new ToolFailedError(wanted.name, cause, work.stage);
    const told = (): unknown => failure(copyOf(thrown, mask));
    const reason = (): string => mask.textForAgent(failureText(thrown));
    return { kind: 'failed', error: failure(causeOf(thrown, mask)), told, reason };
  } finally {
    ended.unlink();
  }
}

/** The host's part of a call: its client, its gate, its attempts. */
class ToolWork {
  readonly #request: ToolCallRequest;
  readonly #mask: CallMask;
  readonly #startedMs = nowMs();
  stage: ToolStage = 'connect';

  constructor(request: ToolCallRequest, mask: CallMask) {
    this.#request = request;
    this.#mask = mask;
  }

  async run(signal: AbortSignal): Promise<unknown> {
    const { wanted, session } = this.#request;
    const client = await session.client(wanted, signal);
    this.stage = 'call';
    const { gate } = wanted.tool;
    // Without a gate, the call's own signal knows of the lease already.
    if (gate === undefined) return this.#attempt(client, { signal, attempt: 1, settle: () => {} }, signal);
    return this.#through(gate, client, signal);
  }

  async #through(gate: ToolGate, client: unknown, signal: AbortSignal): Promise<unknown> {
    for (let before: unknown; ; ) {
      let began = false;
      const attempt = (given: ToolGateAttempt): Promise<unknown> => {
        began = true;
        rememberKey(gate, given.key);
        const ended = either(this.#request.session.signal, given.signal);
        return this.#attempt(client, given, ended.signal).finally(ended.unlink);
      };
      try {
        return await gate.run(attempt, this.#gateOptions(signal));
      } catch (error) {
        // The gate had merged this call with another task's, which ended with that task's lease. That is not our end:
        // it is made again, in company of another or by itself. The same end twice would be a gate that keeps failures.
        if (began || signal.aborted || !isSessionEnd(error) || error === before) throw error;
        before = error;
      }
    }
  }

  /**
   * One call of the host's code. A gate that merges calls may make it for another task's sake, also when this one's
   * caller has left; but never beyond the lease that the client belongs to. It ends when the host's code does, and not
   * before: until then the service may be at work, and a gate must count it.
   */
  async #attempt(client: unknown, given: ToolGateAttempt, signal: AbortSignal): Promise<unknown> {
    const { wanted, input, session } = this.#request;
    try {
      signal.throwIfAborted();
      const { key = '', attempt } = given;
      const settle = (actual: number): void => given.settle(actual);
      const context = { signal, key, taskId: session.task.taskId, attempt, settle };
      // Made a promise once: a lazy thenable would make the call again for each that waits for it.
      const running = Promise.resolve(wanted.tool.call(client, input, context));
      session.track(wanted, running);
      return await running;
    } catch (error) {
      // Whatever the client makes of its signal: who else waits for this call must see that it was only our end.
      throw session.signal.aborted ? session.signal.reason : error;
    }
  }

  #gateOptions(signal: AbortSignal): ToolGateOptions {
    const { wanted, input, session, timeoutMs, priority, toolCallId } = this.#request;
    const { tool } = wanted;
    const cacheKey = tool.cacheKey?.(input);
    const { taskId, requestId, tenant } = session.task;
    return {
      signal,
      toolCallId,
      [MASK]: this.#mask,
      // Never earlier than the call's own deadline, so that it is the call that tells of it.
      timeoutMs: Math.max(1, Math.ceil(this.#startedMs + timeoutMs - nowMs())),
      ...(priority === undefined ? {} : { priority }),
      ...(tool.weight === undefined ? {} : { weight: tool.weight(input) }),
      ...(cacheKey === undefined ? {} : { cacheKey: `${callIdOf(tool.call)}:${cacheKey}` }),
      ...(taskId === undefined ? {} : { taskId }),
      ...(requestId === undefined ? {} : { requestId }),
      ...(tenant === undefined ? {} : { tenant }),
    };
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

/** A signal that aborts when either does, with its reason. Call `unlink` when the work is over. */
export function either(
  first: AbortSignal,
  second: AbortSignal | undefined,
): { readonly signal: AbortSignal; readonly unlink: () => void } {
  if (second === undefined || first === second) return { signal: first, unlink: () => {} };
  const { controller, unlink } = linkedController(first);
  if (first.aborted) return { signal: controller.signal, unlink };
  if (second.aborted) {
    unlink();
    controller.abort(second.reason);
    return { signal: controller.signal, unlink };
  }
  const watcher: AbortWatcher = { onAbort: (reason) => controller.abort(reason) };
  watchAbort(second, watcher);
  return {
    signal: controller.signal,
    unlink: () => {
      unlink();
      unwatchAbort(second, watcher);
    },
  };
}
