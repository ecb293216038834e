import type { LifecycleEvents } from 'pipeline-pool';
import { redactError } from '../../src/internal/redaction.js';

const ids = { taskId: 'research-1', requestId: 'r1' };
const limiter = { source: 'requests', ...ids, active: 3, queued: 1, maxConcurrent: 10, weight: 1 };
const pool = { source: 'pool', ...ids, live: 5, leased: 3, queued: 1, size: 5 };
const instance = { ...pool, instanceId: 2 };
const request = { source: 'manager', ...ids };
const call = { source: 'serper', ...ids, callId: 7, toolCallId: 4 };
const tool = { source: 'main-agent', ...ids, instanceId: 2, tool: 'search', toolCallId: 4 };
const error = redactError(new Error('no memory left'));

/** One payload of each event. */
export const EXAMPLES: LifecycleEvents = {
  'permit:queued': limiter,
  'permit:acquired': { ...limiter, waitMs: 1_500 },
  'permit:released': { ...limiter, outcome: 'ok' },
  'permit:rejected': { ...limiter, reason: 'timeout', waitMs: 30_000, error },
  'limit:changed': { source: 'requests', previous: 10, maxConcurrent: 8 },
  'instance:creating': instance,
  'instance:created': { ...instance, createMs: 4_200 },
  'instance:create-failed': { ...instance, error, createMs: 900, failures: 2, retryAfterMs: 2_000 },
  'instance:unhealthy': { ...instance, stage: 'validate', error },
  'instance:destroyed': { ...instance, reason: 'lifetime', destroyMs: 20, ageMs: 3_900_000, uses: 12 },
  'instance:destroy-failed': { ...instance, reason: 'revoked', destroyMs: 10_000, error },
  'lease:queued': pool,
  'lease:acquired': { ...instance, waitMs: 250 },
  'lease:released': { ...instance, heldMs: 200_000, discarded: false },
  'lease:rejected': { ...pool, reason: 'timeout', waitMs: 30_000, error },
  'lease:leaked': { ...instance, heldMs: 1_800_000, kind: 'overdue', stack: 'Error\n    at here' },
  'lease:revoked': { ...instance, heldMs: 3_600_000, reason: 'max-lease' },
  'request:queued': request,
  'request:started': { ...request, instanceId: 2, waitMs: 1_750, admissionMs: 1_500, leaseMs: 250 },
  'request:finished': { ...request, instanceId: 2, outcome: 'failed', durationMs: 95_000, error },
  'request:rejected': { ...request, outcome: 'timeout', waitMs: 30_000, error },
  'call:started': { ...call, attempt: 1, key: '…a1b2', waitMs: 12.4 },
  'call:retried': {
    ...call,
    attempt: 1,
    key: '…a1b2',
    class: 'rate-limited',
    status: 429,
    retryAfterMs: 800,
  },
  'call:throttled': { ...call, reason: 'rate', waitMs: 420 },
  'call:finished': {
    ...call,
    outcome: 'ok',
    attempts: 2,
    key: '…c3d4',
    durationMs: 2_300,
    waitMs: 1_220,
    cache: 'miss',
    cost: { calls: 2, usd: 0.04 },
  },
  'key:cooldown': { source: 'serper', key: '…a1b2', retryAfterMs: 60_000, status: 429 },
  'key:quarantined': { source: 'serper', key: '…a1b2', reason: 'quarantined' },
  'key:restored': { source: 'serper', key: '…a1b2' },
  'cache:hit': { source: 'serper', ...ids, shared: false },
  'cache:miss': { source: 'serper', ...ids },
  'cache:store-failed': { source: 'serper', operation: 'get', error },
  'budget:exceeded': { ...call, meter: 'usd', limit: 0.5, spent: 0.41, reserved: 0.06, wanted: 0.05 },
  'budget:unmetered': { ...call, meters: ['usd'] },
  'tool:started': tool,
  'tool:finished': { ...tool, outcome: 'ok', durationMs: 2_310 },
  'tool:disconnect-failed': { source: 'tools', tool: 'runCode', instanceId: 2, error },
  'fleet:joined': { source: 'requests', maxConcurrent: 200, members: 3 },
  'fleet:unavailable': { source: 'requests', error },
  'fleet:restored': { source: 'requests', outageMs: 9_500 },
  'limit:mismatch': { source: 'requests', maxConcurrent: 100, fleetMaxConcurrent: 200 },
  'permit:lost': { ...limiter, heldMs: 14_250 },
  'hook:error': { event: 'lease:acquired', error },
};
