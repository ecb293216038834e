import type { PipelinePoolError, PipelinePoolErrorCode, QueueFigures } from '../errors.js';
import { channels } from '../hooks/diagnostics.js';
import type { PermitOutcome, PermitRejection } from '../hooks/events.js';
import type { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { AsyncContext } from '../internal/async-context.js';
import type { AcquireOptions, Limiter } from './limiter.js';
import type { Granted, LimiterPermit } from './permit.js';

const {
  'permit:queued': QUEUED,
  'permit:acquired': ACQUIRED,
  'permit:rejected': REJECTED,
  'permit:released': RELEASED,
} = channels;

type TellingLimiter = Limiter & { readonly hooks: LifecycleHooks };

/** What a limiter's errors say of the moment. */
export const figuresOf = (limiter: Limiter, waitedMs: number): QueueFigures => ({
  source: limiter.name,
  waitedMs,
  active: limiter.activeCount,
  queued: limiter.queuedCount,
  size: limiter.maxConcurrent,
});

const REASONS: { readonly [code in PipelinePoolErrorCode]?: PermitRejection } = {
  ERR_QUEUE_FULL: 'queue-full',
  ERR_DEADLINE_UNMEETABLE: 'deadline',
  ERR_ACQUIRE_TIMEOUT: 'timeout',
  ERR_LIMITER_CLOSED: 'closed',
  ERR_NESTED_ACQUIRE: 'nested',
};

/** What the events call it when a limiter turns somebody away with this error. */
export const reasonOf = ({ code }: PipelinePoolError): PermitRejection => REASONS[code] as PermitRejection;

const told = (limiter: Limiter, weight: number, options: AcquireOptions | undefined) => ({
  source: limiter.name,
  taskId: options?.taskId,
  requestId: options?.requestId,
  tenant: options?.tenant,
  active: limiter.activeCount,
  queued: limiter.queuedCount,
  maxConcurrent: limiter.maxConcurrent,
  weight,
});

/** Tells that a permit is held, if anybody listens. Called in the context of the request. */
export function tellAcquired(limiter: TellingLimiter, permit: LimiterPermit): void {
  const { hooks } = limiter;
  keepContext(hooks, permit);
  if (!hooks.hears('permit:acquired')) return;
  const payload = told(limiter, permit.weight, permit.extras);
  hooks.emit('permit:acquired', { ...payload, waitMs: permit.waitMs });
}

/** Tells that a permit is back, if anybody listens: in the context of its request, whoever released it. */
export function tellReleased(limiter: TellingLimiter, permit: LimiterPermit, outcome: PermitOutcome): void {
  const { hooks } = limiter;
  if (!hooks.hears('permit:released')) return;
  const payload = { ...told(limiter, permit.weight, permit.extras), outcome };
  const tell = (): void => hooks.emit('permit:released', payload);
  const context = permit.extras?.context;
  if (context === undefined) tell();
  else context.run(tell);
}

// A `run` ends in its caller's own `then`; an `acquire` may be released by anybody.
function keepContext(hooks: LifecycleHooks, permit: LimiterPermit): void {
  if (hooks.hears('permit:released')) permit.extras = { ...permit.extras, context: new AsyncContext() };
}

/** Tells of a request that got no permit, if anybody listens. */
export function tellRejected(
  limiter: TellingLimiter,
  reason: PermitRejection,
  error: unknown,
  waitMs: number,
  options: AcquireOptions | undefined,
): void {
  if (!limiter.hooks.hears('permit:rejected')) return;
  const payload = { ...told(limiter, options?.weight ?? 1, options), reason, error, waitMs };
  limiter.hooks.emit('permit:rejected', payload);
}

// By channel, not by name: this stands before every wait, and three look-ups were a tenth of what a wait costs.
const wouldBeTold = (hooks: LifecycleHooks): boolean =>
  hooks.hasListeners ||
  QUEUED.hasSubscribers ||
  ACQUIRED.hasSubscribers ||
  REJECTED.hasSubscribers ||
  RELEASED.hasSubscribers;

/**
 * Tells how a permit waits and what comes of it, if anybody listens. What comes of it is told after the caller's own
 * await: elsewhere a listener would see the AsyncLocalStorage context of whoever released or aborted.
 */
export function tellWaiting(
  limiter: TellingLimiter,
  permit: LimiterPermit,
  granted: Promise<Granted>,
): Promise<Granted> {
  return wouldBeTold(limiter.hooks) ? tellWaitingHeard(limiter, permit, granted) : granted;
}

function tellWaitingHeard(
  limiter: TellingLimiter,
  permit: LimiterPermit,
  granted: Promise<Granted>,
): Promise<Granted> {
  if (limiter.hooks.hears('permit:queued')) {
    limiter.hooks.emit('permit:queued', told(limiter, permit.weight, permit.extras));
  }
  return granted.then(
    (ticket) => {
      tellAcquired(limiter, permit);
      return ticket;
    },
    (error: unknown) => {
      tellRejected(limiter, permit.state as PermitRejection, error, permit.waitMs, permit.extras);
      throw error;
    },
  );
}
