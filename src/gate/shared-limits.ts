import type { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import type { AcquireOptions, FleetStats, Limiter, LimiterStats, Permit } from '../limiter/limiter.js';
import { lossSignalOf, releasePermit, returnPermit } from '../limiter/semaphore.js';
import { type FairnessOptions, UNUSED } from '../queue/options.js';
import type { RateWindow } from './keys/sliding-window.js';

/** Why a key is in cooldown. */
export type CooldownReason = 'cooldown' | 'exhausted' | 'quarantined';

/**
 * Limits that gates of the same name in several processes share: permits, windows, and the state of their keys.
 * `RedisLimits` of `pipeline-pool/redis` is one.
 */
export interface SharedLimits {
  readonly name: string;
  /** @internal */
  gate(config: SharedGateConfig): SharedGate;
}

/** What a gate shares. Keys are hashes. */
export interface SharedGateConfig {
  readonly name: string;
  readonly hooks: LifecycleHooks;
  readonly maxConcurrent: number | undefined;
  /** How waiters share the permits. */
  readonly fairness: FairnessOptions;
  /** Whether the gate's starts are shared: it has keys or windows. */
  readonly sharedRate: readonly RateWindow[];
  readonly keys: readonly SharedKey[];
  /** A key is out of use for all members, or `ready` again. */
  onKey(key: string, why: CooldownReason | 'ready', ms: number): void;
}

/** A key, by its hash. */
export interface SharedKey {
  readonly key: string;
  readonly rate: readonly RateWindow[];
}

/** What a gate needs of a limiter that may be the host's. */
export type GateLimiter = Pick<Limiter, 'acquire' | 'stats'>;

/** A gate's part of the shared limits. */
export interface SharedGate {
  /** The shared permits; `undefined` if nothing limits them. */
  readonly limiter: Limiter | undefined;
  readonly starts: SharedStarts;
  close(): Promise<void>;
}

/** What a request for a start is answered. */
export interface SharedStartListener {
  onGrant(start: SharedStart): void;
  onReject(error: unknown): void;
  /** It has to wait, for so long if that is known. */
  onWait(retryAfterMs: number): void;
}

/** The starts of a gate, in the order of priorities and arrival across all members. */
export interface SharedStarts {
  /** Of all processes. */
  readonly fleet: FleetStats;
  /** Waits for a key with capacity in all windows. Returns what ends the wait. */
  request(weight: number, priority: number, listener: SharedStartListener): () => void;
  /** Puts a key out of use for all members: `Infinity` until it is restored. */
  coolDown(key: string, why: CooldownReason, ms: number, inFlight: number): void;
  restore(key: string): void;
  /** The free part of its fullest window, from 0 to 1, as the server last reported it. */
  freeOf(key: string): number;
  setRates(keys: readonly SharedKey[], sharedRate: readonly RateWindow[]): void;
}

/** A start that was granted. Until `begin` or `cancel`, its capacity is reserved. */
export interface SharedStart {
  /** The hash of its key. */
  readonly key: string;
  /** Whether it goes first after a cooldown. */
  readonly isOnTrial: boolean;
  /** Whether the reservation still holds. */
  isCertain(): boolean;
  /** The work begins in this step, and counts from now. False where the reservation no longer holds: it must not begin. */
  begin(): boolean;
  cancel(): void;
  /** The work weighs so much more than was estimated. */
  correct(more: number): void;
  /** The service accepted the key. */
  succeeded(): void;
  /** It ended without a verdict. */
  end(): void;
}

/** A local limit below one that is shared: a permit of both, the local one first. */
export class LayeredLimiter implements GateLimiter {
  readonly #local: Limiter;
  readonly #shared: Limiter;

  constructor(local: Limiter, shared: Limiter) {
    this.#local = local;
    this.#shared = shared;
  }

  async acquire(options?: AcquireOptions): Promise<Permit> {
    const local = await this.#local.acquire(options);
    let shared: Permit;
    try {
      shared = await this.#shared.acquire(options);
    } catch (error) {
      returnPermit(local);
      throw error;
    }
    const release: Permit['release'] = (outcome) => {
      releasePermit(shared, outcome);
      releasePermit(local, outcome);
    };
    return {
      weight: shared.weight,
      waitMs: local.waitMs + shared.waitMs,
      get signal() {
        return lossSignalOf(shared);
      },
      release,
      [UNUSED]: () => {
        returnPermit(shared);
        returnPermit(local);
      },
      [Symbol.dispose]: () => release(),
    };
  }

  stats(): LimiterStats {
    return {
      ...this.#shared.stats(),
      maxConcurrent: Math.min(this.#local.maxConcurrent, this.#shared.maxConcurrent),
      queued: this.#local.queuedCount + this.#shared.queuedCount,
    };
  }
}
