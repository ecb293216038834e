import type { LifecycleEventName, LifecycleEvents, RequestOutcome } from '../../hooks/events.js';
import { formatDuration as ms, escapeControls as one } from '../../internal/format.js';
import { describeError } from '../../internal/redaction.js';

/** Severity of a line. */
export type LogLevel = 'debug' | 'info' | 'warn' | 'error';

/** The default levels other than `debug`. Where `LEVEL_BY_PAYLOAD` has an entry, it decides. */
const LEVELS: Readonly<Partial<Record<LifecycleEventName, LogLevel>>> = {
  'permit:acquired': 'info',
  'permit:rejected': 'info',
  'instance:create-failed': 'warn',
  'instance:unhealthy': 'warn',
  'instance:destroy-failed': 'warn',
  'lease:acquired': 'info',
  'lease:released': 'info',
  'lease:rejected': 'info',
  'lease:leaked': 'warn',
  'lease:revoked': 'warn',
  'request:rejected': 'warn',
  'key:cooldown': 'info',
  'key:quarantined': 'warn',
  'key:restored': 'info',
  'cache:store-failed': 'warn',
  'budget:exceeded': 'warn',
  'budget:unmetered': 'warn',
  'tool:disconnect-failed': 'warn',
  'fleet:joined': 'info',
  'fleet:unavailable': 'warn',
  'fleet:restored': 'info',
  'limit:mismatch': 'warn',
  'permit:lost': 'warn',
  'hook:error': 'warn',
};

/**
 * The default level of an event. `warn`: an operator should look at it. `info`: admissions, leases and rejections of a
 * healthy service. `debug`: occurs dozens of times per request, or is repeated by a later event.
 */
export const defaultLevelOf = (event: LifecycleEventName): LogLevel => LEVELS[event] ?? 'debug';

const DAY_MS = 86_400_000;

/** The level of the end of a request. An abort is the caller's decision. */
const levelOfEnd = ({ outcome }: { readonly outcome: RequestOutcome }): 'debug' | 'warn' =>
  outcome === 'ok' || outcome === 'aborted' ? 'debug' : 'warn';

/** The highest of the default levels that depend on the payload. */
export const HIGHEST_BY_PAYLOAD = 'warn';

/** The default levels that depend on the payload. */
export const LEVEL_BY_PAYLOAD: {
  readonly [E in LifecycleEventName]?: (payload: LifecycleEvents[E]) => Exclude<LogLevel, 'error'>;
} = {
  'request:finished': levelOfEnd,
  'request:rejected': levelOfEnd,
  // Probably a wrong time of the service, or a blocked account.
  'key:cooldown': ({ retryAfterMs }) => (retryAfterMs > DAY_MS ? 'warn' : 'info'),
};

/** The line of each event. */
export const LOG_LINES: { readonly [E in LifecycleEventName]: (payload: LifecycleEvents[E]) => string } = {
  'permit:queued': (p) => `Queued at ${one(p.source)}: ${task(p)}, ${p.queued} queued`,
  'permit:acquired': (p) => `Concurrency: ${p.active}/${p.maxConcurrent} active requests`,
  'permit:released': (p) =>
    `Permit of ${one(p.source)} released by ${task(p)}: ${p.active}/${p.maxConcurrent} active`,
  'permit:rejected': (p) => `No permit of ${one(p.source)} for ${task(p)} after ${ms(p.waitMs)}: ${p.reason}`,
  'limit:changed': (p) => `Limit of ${one(p.source)} changed from ${p.previous} to ${p.maxConcurrent}`,
  'instance:creating': (p) =>
    `Creating pipeline instance ${p.instanceId} of ${one(p.source)}, ${p.live}/${p.size} live`,
  'instance:created': (p) =>
    `Created pipeline instance ${p.instanceId} of ${one(p.source)} in ${ms(p.createMs)}, ${p.live}/${p.size} live`,
  'instance:create-failed': (p) =>
    `Could not create pipeline instance ${p.instanceId} of ${one(p.source)}, ${p.failures} in a row, next attempt in ${ms(p.retryAfterMs)}: ${why(p.error)}`,
  'instance:unhealthy': (p) =>
    `Pipeline instance ${p.instanceId} of ${one(p.source)} is unhealthy (${p.stage})${p.error === undefined ? '' : `: ${why(p.error)}`}`,
  'instance:destroyed': (p) =>
    `Destroyed pipeline instance ${p.instanceId} of ${one(p.source)} (${p.reason}) after ${p.uses} ${p.uses === 1 ? 'use' : 'uses'} in ${ms(p.ageMs)}`,
  'instance:destroy-failed': (p) =>
    `Could not destroy pipeline instance ${p.instanceId} of ${one(p.source)} (${p.reason}): ${why(p.error)}`,
  'lease:queued': (p) => `Queued for a pipeline instance of ${one(p.source)}: ${task(p)}, ${p.queued} queued`,
  'lease:acquired': (p) => `Acquired pipeline instance ${p.instanceId} for ${task(p)}`,
  'lease:released': (p) => `Released pipeline instance ${p.instanceId} for ${task(p)}`,
  'lease:rejected': (p) =>
    `No pipeline instance of ${one(p.source)} for ${task(p)} after ${ms(p.waitMs)}: ${p.reason}`,
  'lease:leaked': (p) => {
    const held = `Pipeline instance ${p.instanceId} held by ${task(p)} for ${ms(p.heldMs)}`;
    if (p.kind === 'overdue') return `${held} may be leaked`;
    return p.kind === 'returned'
      ? `${held} was released late`
      : `${held} was garbage-collected without release`;
  },
  'lease:revoked': (p) =>
    `Revoked pipeline instance ${p.instanceId} from ${task(p)} after ${ms(p.heldMs)}: ${p.reason}`,
  'request:queued': (p) => `Request of ${task(p)} queued`,
  'request:started': (p) =>
    `Request of ${task(p)} started on pipeline instance ${p.instanceId} after ${ms(p.waitMs)} (admission ${ms(p.admissionMs)}, instance ${ms(p.leaseMs)})`,
  'request:finished': (p) =>
    `Request of ${task(p)} finished in ${ms(p.durationMs)}: ${p.outcome}${p.error === undefined ? '' : `: ${why(p.error)}`}`,
  'request:rejected': (p) =>
    `Request of ${task(p)} rejected after ${ms(p.waitMs)}: ${p.outcome}: ${why(p.error)}`,
  'call:started': (p) => `Call ${p.callId} of ${one(p.source)}: attempt ${p.attempt} after ${ms(p.waitMs)}`,
  'call:retried': (p) =>
    `Call ${p.callId} of ${one(p.source)}: attempt ${p.attempt} failed (${p.class}${p.status === undefined ? '' : `, status ${p.status}`}), next attempt in ${ms(p.retryAfterMs)}`,
  'call:throttled': (p) => `Call ${p.callId} of ${one(p.source)} waits ${ms(p.waitMs)}: ${p.reason}`,
  'call:finished': (p) =>
    `Call ${p.callId} of ${one(p.source)} finished in ${ms(p.durationMs)}: ${p.outcome}, attempts ${p.attempts}, cache ${p.cache}`,
  'key:cooldown': (p) =>
    `Key ${one(p.key)} of ${one(p.source)} in cooldown for ${ms(p.retryAfterMs)}${p.status === undefined ? '' : ` after status ${p.status}`}`,
  'key:quarantined': (p) =>
    `Key ${one(p.key)} of ${one(p.source)} quarantined${p.retryAfterMs === undefined ? '' : ` for ${ms(p.retryAfterMs)}`}: ${p.reason === 'exhausted' ? 'quota exhausted' : 'unauthorized'}`,
  'key:restored': (p) => `Key ${one(p.key)} of ${one(p.source)} restored`,
  'cache:hit': (p) => `Cache of ${one(p.source)}: ${p.shared ? 'shared an in-flight call' : 'hit'}`,
  'cache:miss': (p) => `Cache of ${one(p.source)}: miss`,
  'cache:store-failed': (p) =>
    `Cache of ${one(p.source)}: \`${p.operation}\` of the store failed: ${why(p.error)}`,
  'budget:exceeded': (p) =>
    `Call ${p.callId} of ${one(p.source)} for ${task(p)} exceeds its budget: ${p.wanted} ${one(p.meter)} wanted, ${p.spent} of ${p.limit} spent, ${p.reserved} reserved`,
  'budget:unmetered': (p) =>
    `Gate ${one(p.source)} does not count ${one(p.meters.join(', '))}: set its \`cost\``,
  'tool:started': (p) => `Tool ${one(p.tool)} started for ${task(p)}`,
  'tool:finished': (p) =>
    `Tool ${one(p.tool)} finished for ${task(p)} in ${ms(p.durationMs)}: ${p.outcome}${p.error === undefined ? '' : `: ${why(p.error)}`}`,
  'tool:disconnect-failed': (p) =>
    `Could not disconnect the client of tool ${one(p.tool)}${p.instanceId === undefined ? '' : ` of pipeline instance ${p.instanceId}`}: ${why(p.error)}`,
  'fleet:joined': (p) =>
    `Joined the limit ${one(p.source)}: ${p.maxConcurrent} for ${p.members} ${p.members === 1 ? 'process' : 'processes'}`,
  'fleet:unavailable': (p) => `Limit ${one(p.source)} is unavailable: ${why(p.error)}`,
  'fleet:restored': (p) => `Limit ${one(p.source)} is available again after ${ms(p.outageMs)}`,
  'limit:mismatch': (p) =>
    `Limit ${one(p.source)} is ${p.fleetMaxConcurrent}, although this process was configured with ${p.maxConcurrent}`,
  'permit:lost': (p) => `Permit of ${one(p.source)} lost by ${task(p)} after ${ms(p.heldMs)}`,
  'hook:error': (p) => `A listener of ${p.event} failed: ${why(p.error)}`,
};

const task = ({ taskId }: { readonly taskId?: string }): string =>
  taskId === undefined ? 'an unnamed task' : `task ${one(taskId)}`;

// Redacted already, unless a component of the host's own emitted the event.
const why = (error: unknown): string => one(describeError(error));
