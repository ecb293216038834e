import { WAIT_BUCKETS as WAIT, WORK_BUCKETS as WORK } from './second-buckets.js';

/** What a metric is; its name comes after the prefix. */
export interface MetricDefinition {
  readonly type: 'counter' | 'gauge' | 'histogram';
  readonly name: string;
  readonly help: string;
  readonly labels: readonly string[];
  readonly buckets?: readonly number[];
}

const counter = (name: string, help: string, labels: readonly string[] = []) =>
  ({ type: 'counter', name, help, labels }) as const;
const gauge = (name: string, help: string, labels: readonly string[] = []) =>
  ({ type: 'gauge', name, help, labels }) as const;
const histogram = (name: string, help: string, buckets: readonly number[], labels: readonly string[] = []) =>
  ({ type: 'histogram', name, help, labels, buckets }) as const;

/** Every metric. Durations are seconds, as Prometheus has it; no label holds a task, a request or a key. */
export const METRICS = {
  requests: counter('requests_total', 'Requests that are over, by how they ended', ['outcome']),
  activeRequests: gauge('active_requests', 'Requests whose code runs'),
  waitingRequests: gauge('waiting_requests', 'Requests that wait to be admitted or for an instance'),
  requestDuration: histogram('request_duration_seconds', 'How long the code of requests ran', WORK, [
    'outcome',
  ]),
  requestQueue: histogram('request_queue_seconds', 'How long requests waited before their code began', WAIT),

  permitWait: histogram('permit_wait_seconds', 'How long a permit was waited for', WAIT, ['limiter']),
  permitsRejected: counter('permits_rejected_total', 'Requests that a limiter turned away', [
    'limiter',
    'reason',
  ]),
  limiterActive: gauge('limiter_active', 'Weight held of a limit', ['limiter']),
  limiterQueued: gauge('limiter_queued', 'Requests that wait for a permit', ['limiter']),
  limiterMax: gauge('limiter_max_concurrent', 'The limit in force', ['limiter']),

  poolUsage: gauge('pool_usage', 'Share of the pool that is leased, from 0 to 1: leased instances by size', [
    'pool',
  ]),
  poolSize: gauge('pool_size', 'The most instances the pool keeps', ['pool']),
  poolLive: gauge('pool_live_instances', 'Instances alive: being created, idle, leased or being torn down', [
    'pool',
  ]),
  poolLeased: gauge('pool_leased_instances', 'Instances that are leased', ['pool']),
  poolWaiting: gauge('pool_waiting_requests', 'Requests that wait for an instance', ['pool']),
  leaseWait: histogram('lease_wait_seconds', 'How long an instance was waited for', WAIT, ['pool']),
  leaseHeld: histogram('lease_held_seconds', 'How long instances were leased', WORK, ['pool']),
  leasesRejected: counter('leases_rejected_total', 'Requests that a pool turned away', ['pool', 'reason']),
  leasesRevoked: counter('leases_revoked_total', 'Leases that were taken back', ['pool', 'reason']),
  leasesLeaked: counter(
    'leases_leaked_total',
    'Leases that look leaked, came back after all, or were dropped',
    ['pool', 'kind'],
  ),
  instanceCreate: histogram('instance_create_seconds', 'How long it took to create instances', WORK, [
    'pool',
  ]),
  createFailures: counter('instance_create_failures_total', 'Instances that could not be created', ['pool']),
  unhealthy: counter(
    'instances_unhealthy_total',
    'Instances found to be of no use, by the callback that found it',
    ['pool', 'stage'],
  ),
  destroyed: counter('instances_destroyed_total', 'Instances torn down, by why', ['pool', 'reason']),
  destroyFailures: counter('instance_destroy_failures_total', 'Instances that could not be torn down', [
    'pool',
  ]),

  callDuration: histogram('call_duration_seconds', 'How long calls took, waits and attempts included', WORK, [
    'gate',
    'outcome',
  ]),
  callWait: histogram('call_wait_seconds', 'How long calls waited at their gate, in all', WAIT, ['gate']),
  callAttempts: counter('call_attempts_total', 'Attempts made', ['gate']),
  callRetries: counter('call_retries_total', 'Attempts that failed and were followed by another', [
    'gate',
    'class',
  ]),
  callThrottles: counter('call_throttles_total', 'Times that calls were held up, by what', [
    'gate',
    'reason',
  ]),
  cacheLookups: counter('cache_lookups_total', 'Calls that asked the cache, by what it had', [
    'gate',
    'result',
  ]),
  gateRunning: gauge('gate_running_attempts', 'Attempts under way; known only of the gates in `sources`', [
    'gate',
  ]),
  keys: gauge('keys', 'Keys by state; without `sources` only those that have met a limit', ['gate', 'state']),
  quarantines: counter('key_quarantines_total', 'Keys put in quarantine, by why', ['gate', 'reason']),

  toolDuration: histogram('tool_duration_seconds', 'How long tool calls took', WORK, ['tool', 'outcome']),
  disconnectFailures: counter('tool_disconnect_failures_total', 'Clients of tools that could not be let go', [
    'tool',
  ]),

  hookErrors: counter('hook_errors_total', 'Failures of listeners, by the event they listened to', ['event']),
} as const satisfies Readonly<Record<string, MetricDefinition>>;

/** The key of a metric in `METRICS`. */
export type MetricKey = keyof typeof METRICS;

/** The metrics of one type. */
export type MetricKeyOf<T extends MetricDefinition['type']> = {
  [K in MetricKey]: (typeof METRICS)[K]['type'] extends T ? K : never;
}[MetricKey];
