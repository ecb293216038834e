import type { LimiterStats } from '../limiter/limiter.js';

/** What a health check answers. The names are those of the wire. */
export interface Health {
  readonly status: 'healthy' | 'degraded' | 'draining' | 'unhealthy';
  readonly active_requests: number;
  readonly pool_size: number;
  readonly max_concurrent_requests: number;
  readonly queued_requests: number;
  readonly live_instances: number;
  readonly idle_instances: number;
  readonly creating_instances: number;
  readonly uptime_seconds: number;
}

/** What health is judged by. */
export interface HealthFigures {
  readonly stopping: boolean;
  readonly activeRequests: number;
  readonly waitingRequests: number;
  readonly uptimeMs: number;
  readonly limiter: LimiterStats;
  readonly pool: {
    readonly size: number;
    readonly live: number;
    readonly idle: number;
    readonly creating: number;
  };
}

/** Judges the figures of one moment. */
export function healthOf(figures: HealthFigures): Health {
  const { pool, limiter } = figures;
  return {
    status: figures.stopping ? 'draining' : 'healthy',
    active_requests: figures.activeRequests,
    pool_size: pool.size,
    max_concurrent_requests: limiter.maxConcurrent,
    queued_requests: figures.waitingRequests,
    live_instances: pool.live,
    idle_instances: pool.idle,
    creating_instances: pool.creating,
    uptime_seconds: Math.floor(figures.uptimeMs / 1000),
  };
}
