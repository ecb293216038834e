/** From a cached call to a request of more than half an hour, in seconds. */
export const WORK_BUCKETS = [0.05, 0.25, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600, 1_200, 1_800, 3_600];
/** Finer at the low end, because most waits are short. */
export const WAIT_BUCKETS = [0.005, 0.05, 0.25, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1_800];

/** More names than this become `other`. */
const MAX_NAMES = 100;

/**
 * Bounds the number of values of one label. Pools, gates and tools are usually few, but a host that creates a gate per
 * customer, or takes tool names from a model, must not exhaust the memory of its metrics store.
 */
export class BoundedLabels {
  readonly #known = new Set<string>();

  /** Returns the name itself, or `other` for a new name beyond the bound. */
  name(name: string): string {
    if (this.#known.has(name)) return name;
    if (this.#known.size >= MAX_NAMES) return 'other';
    this.#known.add(name);
    return name;
  }
}

type MetricTable = Readonly<Record<string, readonly [name: string, help: string, ...labels: string[]]>>;

/*
 * All Prometheus metrics: name after the prefix, help, labels. Durations are in seconds. No label contains a task, a request,
 * a tenant or an API key.
 */

/** Counters. */
export const COUNTERS = {
  requests: ['requests_total', 'Requests that ended, by outcome', 'outcome'],
  permitsRejected: ['permits_rejected_total', 'Requests that a limiter rejected', 'limiter', 'reason'],
  leasesRejected: ['leases_rejected_total', 'Requests that a pool rejected', 'pool', 'reason'],
  leasesRevoked: ['leases_revoked_total', 'Revoked leases', 'pool', 'reason'],
  leasesLeaked: [
    'leases_leaked_total',
    'Leases held too long, released late, or garbage-collected without release',
    'pool',
    'kind',
  ],
  createFailures: ['instance_create_failures_total', 'Failed creations of instances', 'pool'],
  unhealthy: [
    'instances_unhealthy_total',
    'Unhealthy instances, by the callback that detected it',
    'pool',
    'stage',
  ],
  destroyed: ['instances_destroyed_total', 'Destroyed instances, by reason', 'pool', 'reason'],
  destroyFailures: ['instance_destroy_failures_total', 'Failed destructions of instances', 'pool'],
  callAttempts: ['call_attempts_total', 'Attempts of calls', 'gate'],
  callRetries: ['call_retries_total', 'Failed attempts that were retried', 'gate', 'class'],
  callThrottles: ['call_throttles_total', 'Waits of calls, by reason', 'gate', 'reason'],
  callCost: ['call_cost_total', 'What calls spent of budgets, by meter', 'gate', 'meter'],
  budgetRejections: ['budget_rejections_total', 'Calls that did not fit into a budget', 'gate', 'meter'],
  cacheLookups: ['cache_lookups_total', 'Cache lookups, by result', 'gate', 'result'],
  quarantines: ['key_quarantines_total', 'Quarantined API keys, by reason', 'gate', 'reason'],
  disconnectFailures: ['tool_disconnect_failures_total', 'Failed disconnections of tool clients', 'tool'],
  hookErrors: ['hook_errors_total', 'Errors of listeners, by event', 'event'],
} as const satisfies MetricTable;

/** Gauges, set at each scrape. */
export const GAUGES = {
  activeRequests: ['active_requests', 'Requests whose code is running'],
  queuedRequests: ['queued_requests', 'Requests that wait for admission or for an instance'],
  limiterActive: ['limiter_active', 'Weight of the held permits', 'limiter'],
  limiterQueued: ['limiter_queued', 'Requests that wait for a permit', 'limiter'],
  limiterMax: ['limiter_max_concurrent', 'The limit in effect', 'limiter'],
  poolUsage: ['pool_usage', 'Leased instances divided by the size of the pool, from 0 to 1', 'pool'],
  poolSize: ['pool_size', 'Maximum number of instances', 'pool'],
  poolLive: ['pool_live_instances', 'Instances being created, idle, leased or being destroyed', 'pool'],
  poolLeased: ['pool_leased_instances', 'Leased instances', 'pool'],
  poolQueued: ['pool_queued_requests', 'Requests that wait for an instance', 'pool'],
  gateRunning: ['gate_running_attempts', 'In-flight attempts of the gates in `sources`', 'gate'],
  keys: ['keys', 'API keys by state; without `sources`, only those that met a limit', 'gate', 'state'],
} as const satisfies MetricTable;

/** Histograms of waits. */
export const WAIT_TIMES = {
  requestQueue: ['request_queue_seconds', 'How long requests waited before their code started'],
  permitWait: ['permit_wait_seconds', 'How long requests waited for a permit', 'limiter'],
  leaseWait: ['lease_wait_seconds', 'How long requests waited for an instance', 'pool'],
  callWait: ['call_wait_seconds', 'How long calls waited in total', 'gate'],
} as const satisfies MetricTable;

/** Histograms of work. */
export const WORK_TIMES = {
  requestDuration: ['request_duration_seconds', 'How long the code of requests ran', 'outcome'],
  leaseHeld: ['lease_held_seconds', 'How long instances were leased', 'pool'],
  instanceCreate: ['instance_create_seconds', 'How long instances took to create', 'pool'],
  callDuration: [
    'call_duration_seconds',
    'How long calls took, with all waits and attempts',
    'gate',
    'outcome',
  ],
  toolDuration: ['tool_duration_seconds', 'How long tool calls took', 'tool', 'outcome'],
} as const satisfies MetricTable;
