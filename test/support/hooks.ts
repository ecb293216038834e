import { LIFECYCLE_EVENTS, type LifecycleEventName, type LifecycleEvents } from '../../src/hooks/events.js';
import { LifecycleHooks } from '../../src/hooks/lifecycle-hooks.js';

/** Hooks that record every event. */
export function recorder() {
  const hooks = new LifecycleHooks();
  const emitted: { event: LifecycleEventName; payload: unknown; atMs: number }[] = [];
  for (const event of LIFECYCLE_EVENTS) {
    hooks.on(event, (payload) => {
      emitted.push({ event, payload, atMs: performance.now() });
    });
  }
  const of = <E extends LifecycleEventName>(event: E) =>
    emitted.filter((one) => one.event === event).map((one) => one.payload as LifecycleEvents[E]);
  return { hooks, emitted, of };
}
