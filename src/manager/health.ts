import type { GateStats } from '../gate/service-gate.js';
import type { LimiterStats } from '../limiter/limiter.js';
import type { PoolStats } from '../pool/pool-stats.js';
import { isCoolingDown, isWithoutKeys } from './gate-figures.js';

/**
 * How a service is.
 *
 * - `healthy`: nothing to report.
 * - `degraded`: it serves, but somebody should look: requests wait for long, creations fail, a service is without keys.
 * - `draining`: it is shutting down, and takes no further requests.
 * - `unhealthy`: no request can be served now.
 */
export type HealthStatus = 'healthy' | 'degraded' | 'draining' | 'unhealthy';

/** What a health check answers. The names are those of the wire. */
export interface Health {
  readonly status: HealthStatus;
  /** Requests that hold a permit. */
  readonly active_requests: number;
  readonly pool_size: number;
  readonly max_concurrent_requests: number;
  /** Requests that wait for a permit. */
  readonly queued_requests: number;
  readonly live_instances: number;
  readonly idle_instances: number;
  readonly creating_instances: number;
  /** Gates that make no call until a rest that their service asked for is over. */
  readonly gates_in_cooldown: readonly string[];
  /** Gates whose keys are all refused or spent. */
  readonly gates_without_keys: readonly string[];
  readonly uptime_seconds: number;
  /** Why the status is not `healthy`, in words; empty when it is. */
  readonly reasons: readonly string[];
}

/** What health is judged by. */
export interface HealthFigures {
  readonly stopping: boolean;
  readonly activeRequests: number;
  readonly waitingRequests: number;
  /** Milliseconds that the request has waited which has waited longest, for a permit or an instance; 0 if none waits. */
  readonly longestWaitMs: number;
  /** Creations that failed in a row, up to the last one. */
  readonly failedCreations: number;
  readonly uptimeMs: number;
  readonly limiter: Pick<LimiterStats, 'maxConcurrent' | 'paused' | 'closed'>;
  readonly pool: Pick<
    PoolStats,
    'size' | 'live' | 'idle' | 'creating' | 'destroying' | 'leased' | 'waiting' | 'state'
  >;
  readonly gates: readonly GateStats[];
}

/** A request that has waited so long was not promised that: a burst is over by then. */
const LONG_WAIT_MS = 60_000;
/** One failure is an accident, and the pool tries again by itself. */
const FAILING = 3;

interface Reason {
  readonly status: Exclude<HealthStatus, 'healthy'>;
  readonly words: string;
}

const WORST_FIRST: readonly HealthStatus[] = ['draining', 'unhealthy', 'degraded'];

/** Judges the figures of one moment. */
export function healthOf(figures: HealthFigures): Health {
  const { pool, limiter, gates } = figures;
  const reasons = reasonsOf(figures);
  const status = WORST_FIRST.find((worse) => reasons.some((reason) => reason.status === worse));
  return {
    status: status ?? 'healthy',
    active_requests: figures.activeRequests,
    pool_size: pool.size,
    max_concurrent_requests: limiter.maxConcurrent,
    queued_requests: figures.waitingRequests,
    live_instances: pool.live,
    idle_instances: pool.idle,
    creating_instances: pool.creating,
    gates_in_cooldown: gates.filter(isCoolingDown).map(({ name }) => name),
    gates_without_keys: gates.filter(isWithoutKeys).map(({ name }) => name),
    uptime_seconds: Math.floor(figures.uptimeMs / 1000),
    reasons: reasons.map(({ words }) => words),
  };
}

function reasonsOf(figures: HealthFigures): readonly Reason[] {
  const { pool, limiter, gates, stopping, longestWaitMs, failedCreations } = figures;
  const reasons: Reason[] = [];
  const add = (status: Reason['status'], words: string): void => {
    reasons.push({ status, words });
  };

  if (stopping) add('draining', 'Shutting down: no further requests are taken');
  else {
    if (pool.state !== 'open') add('unhealthy', `The pool is ${pool.state} and gives no further leases`);
    if (limiter.closed) add('unhealthy', 'The limiter is closed and admits nobody');
    else if (limiter.paused) add('degraded', 'The limiter is paused and admits nobody until it resumes');
  }
  if (failedCreations >= FAILING) {
    const usable = pool.live - pool.creating - pool.destroying;
    const words = `The last ${failedCreations} creations of an instance failed`;
    if (usable > 0) add('degraded', `${words}; ${usable} of ${pool.size} instances are left`);
    else add('unhealthy', `${words}, and no instance is left`);
  }
  if (longestWaitMs >= LONG_WAIT_MS) {
    const busy = `${figures.activeRequests} of ${limiter.maxConcurrent} requests admitted, ${pool.leased} of ${pool.size} instances leased, ${figures.waitingRequests + pool.waiting} waiting`;
    add('degraded', `A request has waited ${Math.floor(longestWaitMs / 1000)} s to begin (${busy})`);
  }
  for (const { name } of gates.filter(isWithoutKeys)) {
    add('degraded', `Every key of ${name} is refused or spent: its calls fail`);
  }
  return reasons;
}
