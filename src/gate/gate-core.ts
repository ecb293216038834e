import { SILENT_HOOKS } from '../hooks/silent-hooks.js';
import { boundedCall } from '../internal/bounded-call.js';
import { ConcurrencyLimiter } from '../limiter/concurrency-limiter.js';
import type { Limiter } from '../limiter/limiter.js';
import type { GateSettings } from './gate-options.js';
import { KeyMask } from './key-mask.js';
import { KeyRing } from './key-ring.js';
import type { MetFailure } from './met-failure.js';
import { classifyOutcome, type Observed, type Verdict, verdictOf } from './outcome.js';
import { RestRoom } from './rest-room.js';
import { Turnstile } from './turnstile.js';

/** Milliseconds that code of the host may go on after it was told to stop, before nobody waits for it any longer. */
export const GRACE_MS = 5_000;

/** A call that waits for a permit, a start or a back-off to end. */
export interface WaitingCall {
  /** Keys rest: does it wait for too long? */
  recheck(): void;
}

/** What all calls of one gate share. */
export class GateCore {
  readonly settings: GateSettings;
  readonly limiter: Limiter | undefined;
  /** The limiter that ends with the gate. */
  readonly #ownLimiter: ConcurrencyLimiter | undefined;
  /** Lets go of the host's adaptive limit. */
  readonly #undrive: (() => void) | undefined;
  readonly mask: KeyMask;
  readonly ring: KeyRing;
  readonly restRoom: RestRoom;
  readonly turnstile: Turnstile;
  readonly waiting = new Set<WaitingCall>();
  /** The last failure of the service, for those who are turned away because of it. */
  lastFailure: MetFailure | undefined;
  attempts = 0;
  retries = 0;
  /** Attempts under way. */
  running = 0;
  /** Attempts that hold a permit and a key, also those that were given up and have not let go. */
  held = 0;
  backingOff = 0;
  #turns = 0;
  #idleWaiters: (() => void)[] = [];

  constructor(settings: GateSettings) {
    const { name, hooks, maxConcurrent, adaptive, keyed, keys, sharedRate, rests } = settings;
    this.settings = settings;
    const bound = adaptive?.limit ?? maxConcurrent;
    if (bound !== undefined) {
      this.#ownLimiter = new ConcurrencyLimiter({ maxConcurrent: bound, name, hooks: SILENT_HOOKS });
      // Driven, and not given as the limiter's own: a permit that waits for a window is no call at the service.
      this.#undrive = adaptive?.drive(this.#ownLimiter);
    }
    this.limiter = settings.limiter ?? this.#ownLimiter;
    this.mask = new KeyMask(keyed ? keys.map((spec) => spec.key) : []);
    this.ring = new KeyRing({ source: name, hooks, mask: this.mask, keys, sharedRate, rests, keyed });
    this.turnstile = new Turnstile(this.ring);
    this.restRoom = new RestRoom(this.ring);
    this.ring.onRoom = () => {
      this.turnstile.look();
      this.restRoom.look();
    };
    this.ring.onRest = () => {
      for (const call of this.waiting) call.recheck();
    };
  }

  /** A place in the order in which attempts were asked for. */
  nextTurn(): number {
    return ++this.#turns;
  }

  /** An attempt has given back what it held. */
  letGo(): void {
    if (--this.held > 0) return;
    const waiters = this.#idleWaiters;
    this.#idleWaiters = [];
    for (const resolve of waiters) resolve();
  }

  /** Settles when no attempt holds anything. */
  onIdle(): Promise<void> {
    return this.held === 0 ? Promise.resolve() : new Promise((resolve) => this.#idleWaiters.push(resolve));
  }

  /** Takes no further permits, once nobody can want any. */
  closeLimiter(): void {
    this.#undrive?.();
    this.#ownLimiter?.close().catch(() => {});
  }

  /** What an outcome means. Rejects where the host's classifier fails or answers nonsense. */
  async classify(observed: Observed): Promise<Verdict> {
    const answer = await this.settings.classify?.(observed);
    return verdictOf(answer ?? classifyOutcome(observed));
  }

  /** The same, bounded: nothing that came of an attempt takes long to look at, where no body has to be read. */
  async judge(observed: Observed, signal: AbortSignal): Promise<Verdict> {
    const { classify, name } = this.settings;
    if (classify === undefined) return verdictOf(classifyOutcome(observed));
    return boundedCall(() => this.classify(observed), {
      signal,
      timeoutMs: GRACE_MS,
      timeoutError: (ms) => new TypeError(`\`classify\` of ${name} took longer than ${ms} ms`),
    });
  }
}
