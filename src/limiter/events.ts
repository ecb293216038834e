import type { PipelinePoolError, QueueFigures } from '../errors.js';
import type { PermitOutcome, PermitRejection, QueuePlace } from '../hooks/events.js';
import { channelOf, type LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { AsyncContext } from '../internal/async-context.js';
import { summarizeError, summaryOf } from '../internal/error-summary.js';
import type { AcquireOptions, Limiter } from './limiter.js';

/**
 * The events of a limiter, and the figures of its errors. Everything here first checks that someone listens. A waiter's
 * events are emitted from its own `then`: elsewhere a listener would see the AsyncLocalStorage context of the code that
 * released or aborted.
 */

const QUEUED = /* @__PURE__ */ channelOf('permit:queued');
const ACQUIRED = /* @__PURE__ */ channelOf('permit:acquired');
const REJECTED = /* @__PURE__ */ channelOf('permit:rejected');
export const RELEASED = /* @__PURE__ */ channelOf('permit:released');

/**
 * Whether an event of a permit that was granted has listeners. By channel, not by name: look-ups were a tenth of what a wait
 * costs.
 */
export const isObserved = (hooks: LifecycleHooks): boolean =>
  hooks.hasAnyListeners || ACQUIRED.hasSubscribers || RELEASED.hasSubscribers;

export type ObservableLimiter = Limiter & { readonly hooks: LifecycleHooks };

/** What events need of a permit's options. */
export interface PermitContext extends AcquireOptions {
  /** The context of the request, kept while its release will be reported. */
  context?: AsyncContext;
}

interface ObservablePermit {
  readonly weight: number;
  readonly waitMs: number;
  readonly state: string;
  extras: PermitContext | undefined;
}

interface QueuedPermit extends ObservablePermit {
  place(): QueuePlace | undefined;
}

/** The figures that a limiter's errors carry. */
export const queueFigures = (limiter: Limiter, waitMs: number): QueueFigures => ({
  source: limiter.name,
  waitMs,
  active: limiter.activeCount,
  queued: limiter.queuedCount,
  size: limiter.maxConcurrent,
});

/** What all events of a permit carry. */
export const permitPayload = (limiter: Limiter, weight: number, options: AcquireOptions | undefined) => ({
  source: limiter.name,
  taskId: options?.taskId,
  requestId: options?.requestId,
  tenant: options?.tenant,
  active: limiter.activeCount,
  queued: limiter.queuedCount,
  maxConcurrent: limiter.maxConcurrent,
  weight,
});

/** Called in the context of the request. */
export function emitAcquired(limiter: ObservableLimiter, permit: ObservablePermit): void {
  const { hooks } = limiter;
  // A `run` ends in its caller's own `then`; an `acquire` may be released from anywhere.
  if (hooks.hasListeners('permit:released'))
    permit.extras = Object.assign({ context: new AsyncContext() }, permit.extras);
  if (!hooks.hasListeners('permit:acquired')) return;
  const payload = permitPayload(limiter, permit.weight, permit.extras);
  hooks.emit('permit:acquired', { waitMs: permit.waitMs, ...payload });
}

/** Emits in the context of the request, whatever code released it. */
export function emitReleased(
  limiter: ObservableLimiter,
  permit: ObservablePermit,
  outcome: PermitOutcome,
): void {
  const { hooks } = limiter;
  if (!hooks.hasListeners('permit:released')) return;
  const payload = { outcome, ...permitPayload(limiter, permit.weight, permit.extras) };
  const emit = (): void => hooks.emit('permit:released', payload);
  const context = permit.extras?.context;
  if (context === undefined) emit();
  else context.run(emit);
}

export function emitRejected(
  limiter: ObservableLimiter,
  reason: PermitRejection,
  error: unknown,
  waitMs: number,
  options: AcquireOptions | undefined,
): void {
  if (!limiter.hooks.hasListeners('permit:rejected')) return;
  const payload = {
    reason,
    // Only the reason of an abort is the host's.
    error:
      reason === 'aborted'
        ? summarizeError(error, limiter.hooks.redact)
        : summaryOf(error as PipelinePoolError),
    waitMs,
    ...permitPayload(limiter, options?.weight ?? 1, options),
  };
  limiter.hooks.emit('permit:rejected', payload);
}

/** Reports that a permit is queued, and how its wait ends. */
export function observeWait<G>(
  limiter: ObservableLimiter,
  permit: QueuedPermit,
  granted: Promise<G>,
): Promise<G> {
  const isReported = isObserved(limiter.hooks) || QUEUED.hasSubscribers || REJECTED.hasSubscribers;
  return isReported ? emitWait(limiter, permit, granted) : granted;
}

function emitWait<G>(limiter: ObservableLimiter, permit: QueuedPermit, granted: Promise<G>): Promise<G> {
  const place = limiter.hooks.hasListeners('permit:queued') ? permit.place() : undefined;
  if (place !== undefined) {
    const payload = permitPayload(limiter, permit.weight, permit.extras);
    limiter.hooks.emit('permit:queued', Object.assign(payload, place));
  }
  return granted.then(
    (answer) => {
      emitAcquired(limiter, permit);
      return answer;
    },
    (error: unknown) => {
      emitRejected(limiter, permit.state as PermitRejection, error, permit.waitMs, permit.extras);
      throw error;
    },
  );
}
