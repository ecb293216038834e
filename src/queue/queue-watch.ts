import type { QueuePlace } from '../hooks/events.js';

/** The option by which a manager learns where its request stands, from a limiter and a pool of this package. */
export const QUEUE_WATCH: unique symbol = /* @__PURE__ */ Symbol('queue watch');

/** What a limiter or a pool gives a way to read the place of a request that is queued. */
export interface QueueWatch {
  /** Reads the place; `undefined` once the request waits no longer. */
  readPlace: (() => QueuePlace | undefined) | undefined;
}
