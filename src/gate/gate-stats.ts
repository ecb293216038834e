import type { LimiterStats } from '../limiter/limiter.js';
import type { GateOutcome } from './call-scope.js';
import type { KeyStats } from './key-ring.js';

/** Figures of a gate, counted, not derived. */
export interface GateStats {
  readonly name: string;
  readonly closed: boolean;
  /** Calls so far, those answered by the cache among them. */
  readonly calls: number;
  /** Calls that are over, by how they ended. */
  readonly finished: Readonly<Partial<Record<GateOutcome, number>>>;
  /** Attempts so far. */
  readonly attempts: number;
  /** Attempts so far that were not the first of their call. */
  readonly retries: number;
  /** Attempts under way. */
  readonly running: number;
  /** Calls that have a permit and wait for a key with room. */
  readonly waitingForStart: number;
  /** Calls that wait out a back-off, or a rest of all keys, and hold nothing. */
  readonly backingOff: number;
  /** The limit on attempts, and who waits for a permit; `undefined` where there is no bound. */
  readonly limiter: LimiterStats | undefined;
  /** Retries that the budget has left now; `Infinity` without a budget. */
  readonly retriesLeft: number;
  /** Milliseconds until any key can serve; 0 when one can, `Infinity` when none will. */
  readonly opensInMs: number;
  /** Each key, masked; one named `service` where the gate has none. */
  readonly keys: readonly KeyStats[];
  readonly cache: {
    /** Answers kept. */
    readonly size: number;
    /** Calls under way that several may wait for. */
    readonly inFlight: number;
    /** Calls that a kept answer served. */
    readonly hits: number;
    /** Calls that another's call served. */
    readonly shared: number;
    readonly misses: number;
  };
}
