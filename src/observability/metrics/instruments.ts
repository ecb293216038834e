/*
 * The instruments of both exporters: the name in Prometheus after the prefix, help, labels. Durations are in seconds. No
 * label contains a task, a request or an API key.
 */
export type Instrument = readonly [name: string, help: string, ...labels: string[]];
type Table = Readonly<Record<string, Instrument>>;

/** Counters of events. */
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
  cacheStoreFailures: [
    'cache_store_failures_total',
    'Failures of the shared store of a cache',
    'gate',
    'operation',
  ],
  quarantines: ['key_quarantines_total', 'Quarantined API keys, by reason', 'gate', 'reason'],
  disconnectFailures: ['tool_disconnect_failures_total', 'Failed disconnections of tool clients', 'tool'],
  hookErrors: ['hook_errors_total', 'Errors of listeners, by event', 'event'],
} as const satisfies Table;

/** Levels, read at each scrape or collection. */
export const LEVELS = {
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
  budgetAmount: [
    'budget_amount',
    'What the budgets of the current requests in `sources` allow: spent, reserved by calls in flight, and left',
    'meter',
    'state',
  ],
  tenantRunning: ['tenant_active_requests', 'Requests whose code is running, by tenant', 'tenant'],
  tenantQueued: ['tenant_queued_requests', 'Requests that wait, by tenant', 'tenant'],
} as const satisfies Table;

/** Levels that are the same in each process that shares the limit: not to be added up. */
export const FLEET_LEVELS = {
  fleetActive: ['fleet_active', 'Weight of the permits that all processes hold', 'limit'],
  fleetQueued: ['fleet_queued', 'Waiters of all processes', 'limit'],
  fleetMax: ['fleet_max_concurrent', 'The limit of all processes together', 'limit'],
  fleetMembers: ['fleet_members', 'Processes that share the limit', 'limit'],
  fleetAvailable: ['fleet_available', 'Whether the server of the limit answers: 1 or 0', 'limit'],
} as const satisfies Table;

/** Counters that are read at each scrape or collection. */
export const TOTALS = {
  fleetLost: ['fleet_permits_lost_total', 'Permits that this process has lost before their release', 'limit'],
  tenantStarted: ['tenant_requests_total', 'Requests that began, by tenant', 'tenant'],
  tenantRunTime: ['tenant_run_seconds_total', 'How long the code of requests ran, by tenant', 'tenant'],
  tenantWaitTime: ['tenant_wait_seconds_total', 'How long requests waited before, by tenant', 'tenant'],
  tenantCost: ['tenant_cost_total', 'What calls spent of budgets, by tenant and meter', 'tenant', 'meter'],
} as const satisfies Table;

/** From a cached call to a request of more than half an hour, in seconds. */
export const WORK_BUCKETS = [0.05, 0.25, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600, 1_200, 1_800, 3_600];
/** Finer at the low end, because most waits are short. */
export const WAIT_BUCKETS = [0.005, 0.05, 0.25, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1_800];

/** Histograms of waits. */
export const WAIT_TIMES = {
  requestQueue: ['request_queue_seconds', 'How long requests waited before their code started'],
  permitWait: ['permit_wait_seconds', 'How long requests waited for a permit', 'limiter'],
  leaseWait: ['lease_wait_seconds', 'How long requests waited for an instance', 'pool'],
  callWait: ['call_wait_seconds', 'How long calls waited in total', 'gate'],
} as const satisfies Table;

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
} as const satisfies Table;
