import type { GateStats } from '../gate/service-gate.js';
import type { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import type { FleetStats, LimiterStats } from '../limiter/limiter.js';
import type { PoolStats } from '../pool/options.js';

/**
 * The health of a service.
 *
 * - `healthy`: nothing to report.
 * - `degraded`: it serves, but somebody should look: requests wait for long, creations fail, a service has no usable key.
 * - `draining`: it is shutting down, and accepts no further requests.
 * - `unhealthy`: no request can be served now.
 */
export type HealthStatus = 'healthy' | 'degraded' | 'draining' | 'unhealthy';

/** The result of a health check. The names are those in the JSON response. */
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
  /** Gates that start no call until a cooldown is over. */
  readonly gates_in_cooldown: readonly string[];
  /** Gates whose keys are all quarantined or exhausted. */
  readonly gates_without_keys: readonly string[];
  /** If several processes share the limit of requests: what all of them do. */
  readonly fleet?: FleetStats;
  readonly uptime_seconds: number;
  /** Why the status is not `healthy`, in words; empty when it is. */
  readonly reasons: readonly string[];
}

/** What health is derived from. */
export interface HealthFigures {
  readonly stopping: boolean;
  readonly activeRequests: number;
  readonly queuedRequests: number;
  /** Milliseconds for which the longest waiting request has waited, for a permit or an instance; 0 if none waits. */
  readonly longestWaitMs: number;
  /** Creations that failed in a row, up to the last one. */
  readonly failedCreations: number;
  readonly uptimeMs: number;
  readonly limiter: Pick<LimiterStats, 'maxConcurrent' | 'paused' | 'closed' | 'fleet'>;
  readonly pool: Pick<
    PoolStats,
    'size' | 'live' | 'idle' | 'creating' | 'destroying' | 'leased' | 'queued' | 'state'
  >;
  readonly gates: readonly GateStats[];
}

/** Whether the server of a limit that several processes share cannot be reached. */
const isUnavailable = (stats: { readonly fleet?: FleetStats | undefined } | undefined): boolean =>
  stats?.fleet?.available === false;

/** A burst is over by then: a longer wait means that capacity is missing. */
const LONG_WAIT_MS = 60_000;
/** The pool retries by itself: one or two failures say nothing. */
const FAILING = 3;

interface Reason {
  readonly status: Exclude<HealthStatus, 'healthy'>;
  readonly text: string;
}

const WORST_FIRST: readonly HealthStatus[] = ['draining', 'unhealthy', 'degraded'];

/** Derives the health from the figures of one moment. */
export function healthOf(figures: HealthFigures): Health {
  const { pool, limiter, gates } = figures;
  const reasons = reasonsOf(figures);
  const status = WORST_FIRST.find((worse) => reasons.some((reason) => reason.status === worse));
  return {
    status: status ?? 'healthy',
    active_requests: figures.activeRequests,
    pool_size: pool.size,
    max_concurrent_requests: limiter.maxConcurrent,
    queued_requests: figures.queuedRequests,
    live_instances: pool.live,
    idle_instances: pool.idle,
    creating_instances: pool.creating,
    gates_in_cooldown: gates.filter(isCoolingDown).map(({ name }) => name),
    gates_without_keys: gates.filter(isWithoutKeys).map(({ name }) => name),
    ...(limiter.fleet && { fleet: limiter.fleet }),
    uptime_seconds: Math.floor(figures.uptimeMs / 1000),
    reasons: reasons.map(({ text }) => text),
  };
}

function reasonsOf(figures: HealthFigures): readonly Reason[] {
  const { pool, limiter, gates, stopping, longestWaitMs, failedCreations } = figures;
  const reasons: Reason[] = [];
  const add = (status: Reason['status'], text: string): void => {
    reasons.push({ status, text });
  };

  if (stopping) add('draining', 'Shutting down: no further requests are accepted');
  else {
    if (pool.state !== 'open') add('unhealthy', `The pool is ${pool.state} and gives no further leases`);
    if (limiter.closed) add('unhealthy', 'The limiter is closed and admits no request');
    else if (limiter.paused) add('degraded', 'The limiter is paused and admits no request until it resumes');
  }
  if (isUnavailable(limiter)) add('degraded', 'The server of the shared request limit cannot be reached');
  for (const gate of gates)
    if (isWithoutLimits(gate))
      add('degraded', `The server of the shared limits of ${gate.name} cannot be reached`);
  if (failedCreations >= FAILING) {
    const usable = pool.live - pool.creating - pool.destroying;
    const words = `The last ${failedCreations} creations of an instance failed`;
    if (usable > 0) add('degraded', `${words}; ${usable} of ${pool.size} instances are left`);
    else add('unhealthy', `${words}, and no instance is left`);
  }
  if (longestWaitMs >= LONG_WAIT_MS) {
    const busy = `${figures.activeRequests} of ${limiter.maxConcurrent} requests admitted, ${pool.leased} of ${pool.size} instances leased, ${figures.queuedRequests + pool.queued} queued`;
    add('degraded', `A request has waited ${Math.floor(longestWaitMs / 1000)} s to begin (${busy})`);
  }
  for (const { name } of gates.filter(isWithoutKeys)) {
    add('degraded', `Every key of ${name} is quarantined or exhausted: its calls fail`);
  }
  return reasons;
}

/** Counts how many creations of a pool failed in a row, from its construction on. */
export class CreationWatch {
  #failedCreations = 0;

  constructor(pool: { readonly name: string; readonly hooks: LifecycleHooks }) {
    pool.hooks
      .on('instance:created', ({ source }) => {
        if (source === pool.name) this.#failedCreations = 0;
      })
      .on('instance:create-failed', ({ source, failures }) => {
        if (source === pool.name) this.#failedCreations = failures;
      });
  }

  get failedCreations(): number {
    return this.#failedCreations;
  }
}

/** The statistics of those gates that are `ServiceGate`s; a gate of the host's own may count anything. */
export function gateStatsOf(gates: readonly { stats(): unknown }[]): readonly GateStats[] {
  return gates.flatMap((gate) => {
    const stats = gate.stats();
    return isGateStats(stats) ? [stats] : [];
  });
}

function isGateStats(stats: unknown): stats is GateStats {
  const { name, keys, attempts } = Object(stats) as Partial<GateStats>;
  return typeof name === 'string' && Array.isArray(keys) && typeof attempts === 'number';
}

/** Whether a gate cannot reach the server of the limits that it shares. */
const isWithoutLimits = (gate: GateStats): boolean => isUnavailable(gate) || isUnavailable(gate.limiter);

/** Whether every key is quarantined or exhausted: every call fails until somebody acts. */
export function isWithoutKeys({ keys }: GateStats): boolean {
  return keys.every(({ state }) => state === 'exhausted' || state === 'quarantined');
}

/** Whether the service or all of its keys are in a cooldown that ends by itself. */
export function isCoolingDown(gate: GateStats): boolean {
  return gate.retryAfterMs > 0 && !isWithoutKeys(gate);
}
