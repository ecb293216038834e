import { type Channel, channel } from 'node:diagnostics_channel';
import { LIFECYCLE_EVENTS, type LifecycleEventName } from './events.js';

/**
 * Each lifecycle event is also published on the diagnostics channel `pipeline-pool:<event>`, for tracing tools that
 * subscribe from outside. A message is `{ event, payload }`; it is made only while somebody subscribes.
 */
export const channels = Object.freeze(
  Object.fromEntries(LIFECYCLE_EVENTS.map((event) => [event, channel(`pipeline-pool:${event}`)])),
) as Readonly<Record<LifecycleEventName, Channel>>;
