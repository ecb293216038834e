import type { LifecycleEventName, LifecycleEvents } from '../hooks/events.js';
import { shownDuration } from './shown-duration.js';

/** How much a line matters. */
export type LogLevel = 'debug' | 'info' | 'warn' | 'error';

interface LogLine<E extends LifecycleEventName> {
  readonly level: LogLevel;
  /** The level of one event, where that can be another than usual. */
  readonly levelOf?: (payload: LifecycleEvents[E]) => LogLevel;
  readonly text: (payload: LifecycleEvents[E]) => string;
}

/**
 * The line of each event and its usual level. `warn` is for what somebody should look at; `info` for what a service that is
 * well has to say, who came in and who has what, and for those it turned away; `debug` for what comes dozens of times a
 * request, or is told again by a later event.
 */
export const LOG_LINES: { readonly [E in LifecycleEventName]: LogLine<E> } = {
  'permit:queued': {
    level: 'debug',
    text: (p) => `Queued at ${one(p.source)}: ${task(p)}, ${p.queued} waiting`,
  },
  'permit:acquired': {
    level: 'info',
    text: (p) => `Concurrency: ${p.active}/${p.maxConcurrent} active requests`,
  },
  'permit:released': {
    level: 'debug',
    text: (p) => `Permit of ${one(p.source)} released by ${task(p)}: ${p.active}/${p.maxConcurrent} active`,
  },
  'permit:rejected': {
    level: 'info',
    text: (p) => `No permit of ${one(p.source)} for ${task(p)} after ${shownDuration(p.waitMs)}: ${p.reason}`,
  },
  'limit:changed': {
    level: 'debug',
    text: (p) => `Limit of ${one(p.source)} changed from ${p.previous} to ${p.maxConcurrent}`,
  },
  'instance:creating': {
    level: 'debug',
    text: (p) => `Creating pipeline instance ${p.instanceId} of ${one(p.source)}, ${p.live}/${p.size} live`,
  },
  'instance:created': {
    level: 'debug',
    text: (p) =>
      `Created pipeline instance ${p.instanceId} of ${one(p.source)} in ${shownDuration(p.createMs)}, ${p.live}/${p.size} live`,
  },
  'instance:createFailed': {
    level: 'warn',
    text: (p) =>
      `Could not create pipeline instance ${p.instanceId} of ${one(p.source)}, ${p.failures} in a row, next in ${shownDuration(p.retryInMs)}: ${why(p.error)}`,
  },
  'instance:unhealthy': {
    level: 'warn',
    text: (p) =>
      `Pipeline instance ${p.instanceId} of ${one(p.source)} is unhealthy, found by ${p.stage}${p.error === undefined ? '' : `: ${why(p.error)}`}`,
  },
  'instance:destroyed': {
    level: 'debug',
    text: (p) =>
      `Destroyed pipeline instance ${p.instanceId} of ${one(p.source)} (${p.reason}) after ${p.uses} ${p.uses === 1 ? 'use' : 'uses'} in ${shownDuration(p.ageMs)}`,
  },
  'instance:destroyFailed': {
    level: 'warn',
    text: (p) =>
      `Could not destroy pipeline instance ${p.instanceId} of ${one(p.source)} (${p.reason}): ${why(p.error)}`,
  },
  'lease:queued': {
    level: 'debug',
    text: (p) => `Waiting for a pipeline instance of ${one(p.source)}: ${task(p)}, ${p.waiting} waiting`,
  },
  'lease:acquired': {
    level: 'info',
    text: (p) => `Acquired pipeline instance ${p.instanceId} for ${task(p)}`,
  },
  'lease:released': {
    level: 'info',
    text: (p) => `Released pipeline instance ${p.instanceId} for ${task(p)}`,
  },
  'lease:rejected': {
    level: 'info',
    text: (p) =>
      `No pipeline instance of ${one(p.source)} for ${task(p)} after ${shownDuration(p.waitMs)}: ${p.reason}`,
  },
  'lease:leaked': {
    level: 'warn',
    text: (p) => {
      const held = `Pipeline instance ${p.instanceId} held by ${task(p)} for ${shownDuration(p.heldMs)}`;
      if (p.kind === 'overdue') return `${held} looks leaked`;
      return p.kind === 'returned' ? `${held} came back after all` : `${held} was dropped without release`;
    },
  },
  'lease:revoked': {
    level: 'warn',
    text: (p) =>
      `Revoked pipeline instance ${p.instanceId} from ${task(p)} after ${shownDuration(p.heldMs)}: ${p.reason}`,
  },
  'request:queued': { level: 'debug', text: (p) => `Request of ${task(p)} queued` },
  'request:started': {
    level: 'debug',
    text: (p) =>
      `Request of ${task(p)} started on pipeline instance ${p.instanceId} after ${shownDuration(p.queuedMs)} (admission ${shownDuration(p.admissionMs)}, instance ${shownDuration(p.leaseMs)})`,
  },
  'request:finished': {
    level: 'debug',
    levelOf: ({ outcome }) => (outcome === 'ok' || outcome === 'aborted' ? 'debug' : 'warn'),
    text: (p) =>
      `Request of ${task(p)} finished in ${shownDuration(p.durationMs)}: ${p.outcome}${p.error === undefined ? '' : `: ${why(p.error)}`}`,
  },
  'request:rejected': {
    level: 'warn',
    levelOf: ({ outcome }) => (outcome === 'aborted' ? 'debug' : 'warn'),
    text: (p) =>
      `Request of ${task(p)} rejected after ${shownDuration(p.queuedMs)}: ${p.outcome}: ${why(p.error)}`,
  },
  'call:started': {
    level: 'debug',
    text: (p) =>
      `Call ${p.callId} of ${one(p.source)}: attempt ${p.attempt} after ${shownDuration(p.waitMs)}`,
  },
  'call:retried': {
    level: 'debug',
    text: (p) =>
      `Call ${p.callId} of ${one(p.source)}: attempt ${p.attempt} failed (${p.class}${p.status === undefined ? '' : `, status ${p.status}`}), next in ${shownDuration(p.delayMs)}`,
  },
  'call:throttled': {
    level: 'debug',
    text: (p) => `Call ${p.callId} of ${one(p.source)} waits ${shownDuration(p.waitMs)}: ${p.reason}`,
  },
  'call:finished': {
    level: 'debug',
    text: (p) =>
      `Call ${p.callId} of ${one(p.source)} finished in ${shownDuration(p.durationMs)}: ${p.outcome}, attempts ${p.attempts}, cache ${p.cache}`,
  },
  'key:cooledDown': {
    level: 'info',
    text: (p) =>
      `Key ${one(p.key)} of ${one(p.source)} cools down for ${shownDuration(p.forMs)}${p.status === undefined ? '' : ` after status ${p.status}`}`,
  },
  'key:quarantined': {
    level: 'warn',
    text: (p) =>
      `Key ${one(p.key)} of ${one(p.source)} quarantined${p.forMs === undefined ? '' : ` for ${shownDuration(p.forMs)}`}: ${p.reason}`,
  },
  'key:restored': { level: 'info', text: (p) => `Key ${one(p.key)} of ${one(p.source)} is back` },
  'cache:hit': {
    level: 'debug',
    text: (p) => `Cache of ${one(p.source)}: ${p.shared ? 'shared a call in flight' : 'hit'}`,
  },
  'cache:miss': { level: 'debug', text: (p) => `Cache of ${one(p.source)}: miss` },
  'tool:started': { level: 'debug', text: (p) => `Tool ${one(p.tool)} started for ${task(p)}` },
  'tool:finished': {
    level: 'debug',
    text: (p) =>
      `Tool ${one(p.tool)} finished for ${task(p)} in ${shownDuration(p.durationMs)}: ${p.outcome}${p.error === undefined ? '' : `: ${why(p.error)}`}`,
  },
  'tool:disconnectFailed': {
    level: 'warn',
    text: (p) =>
      `Could not disconnect the client of tool ${one(p.tool)}${p.instanceId === undefined ? '' : ` of pipeline instance ${p.instanceId}`}: ${why(p.error)}`,
  },
  'hook:error': { level: 'warn', text: (p) => `A listener of ${p.event} failed: ${why(p.error)}` },
};

const task = ({ taskId }: { readonly taskId?: string }): string =>
  taskId === undefined ? 'an unnamed task' : `task ${one(taskId)}`;

const why = (error: unknown): string => {
  if (error instanceof Error) return one(error.message || error.name);
  try {
    return one(String(error));
  } catch {
    return 'a value that cannot be shown';
  }
};

// Task ids and messages often come from outside: a line break in one must not look like a line of its own.
const one = (text: string): string => text.replace(/[\p{Cc}\p{Zl}\p{Zp}]/gu, (c) => shownControl(c));

const shownControl = (character: string): string =>
  ({ '\n': '\\n', '\r': '\\r', '\t': '\\t' })[character] ??
  `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`;
