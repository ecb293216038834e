import { AcquireTimeoutError, LimiterClosedError } from '../errors.js';
import { Milestone } from '../internal/milestone.js';
import type { AdaptiveLimit } from './adaptive-limit.js';
import { DrainRate } from './drain-rate.js';
import type { Limiter, LimiterStats } from './limiter.js';
import type { ConcurrencyLimiterOptions } from './limiter-options.js';
import type { Granted, LimiterPermit, PermitExtras, WaitingPermit } from './permit.js';
import { figuresOf } from './permit-events.js';
import { type WaitingObjection, WaitingRoom } from './waiting-room.js';

/**
 * The semaphore behind a limiter: counts the permits that are held, and hands on those that come back. It keeps what
 * `ConcurrencyLimiter` promises of order and limit; checking requests, running work and telling of it are not its own.
 *
 * Invariants:
 * - While `hasRoom`, nobody waits, nothing is paused or closed, and a permit of weight 1 is free.
 * - Whoever waits is ahead of whoever comes: `isFree` is false for the newcomer, unless its priority is higher.
 * - `free`, `resize`, `resume` and `giveUp` have handed on whatever can be had before they return.
 * - No code of a request runs in here: settling a promise runs nobody's.
 */
export class Admission {
  readonly #limiter: Limiter;
  readonly #adaptive: AdaptiveLimit | undefined;
  readonly #waiting: WaitingRoom;
  readonly #drainRate = new DrainRate();
  #maxConcurrent: number;
  #active = 0;
  #acquired = 0;
  #rejected = 0;
  #paused = false;
  /** What will end the pause, where that is known. */
  #pauseTimer: NodeJS.Timeout | undefined;
  #hasRoom = true;
  #isOpen = true;
  #idle: Milestone | undefined;

  constructor(limiter: Limiter, maxConcurrent: number, rules: ConcurrencyLimiterOptions) {
    this.#limiter = limiter;
    this.#adaptive = rules.adaptive;
    this.#maxConcurrent = maxConcurrent;
    this.#waiting = new WaitingRoom(limiter, rules, this.#drainRate, (permit) => {
      this.giveUp(permit, 'timeout', undefined);
    });
  }

  /** Whether a light newcomer gets in at once. While not, a release has to hand over, and the drain rate is measured. */
  get hasRoom(): boolean {
    return this.#hasRoom;
  }

  get isPaused(): boolean {
    return this.#paused;
  }

  /** Whether requests are taken at all. */
  get isOpen(): boolean {
    return this.#isOpen;
  }

  /** Whether the limit is reached, and nothing else would keep a newcomer waiting. */
  get isFull(): boolean {
    return this.#isServing() && this.#active >= this.#maxConcurrent;
  }

  /** Whether nothing bounds the waiting of one that asks for no bounds itself. */
  get isUnbounded(): boolean {
    return this.#waiting.isUnbounded;
  }

  get maxConcurrent(): number {
    return this.#maxConcurrent;
  }

  /** Weight held now. */
  get active(): number {
    return this.#active;
  }

  /** Waiters now. */
  get queued(): number {
    return this.#waiting.size;
  }

  stats(): LimiterStats {
    return Object.freeze({
      maxConcurrent: this.#maxConcurrent,
      active: this.#active,
      queued: this.#waiting.size,
      acquired: this.#acquired,
      rejected: this.#rejected,
      paused: this.#paused,
      closed: !this.#isOpen,
    });
  }

  /** Whether a newcomer is next and has room. Without a priority it is next only where nobody waits. */
  isFree(weight: number, priority = Number.NEGATIVE_INFINITY): boolean {
    return this.#isServing() && this.#fits(weight) && this.#waiting.isBehind(priority);
  }

  /** Takes a permit that is free. */
  take(permit: LimiterPermit): void {
    this.#count(permit);
    if (this.#active >= this.#maxConcurrent) this.#fill();
  }

  /** Takes a permit of weight 1 that is free, counted only, not made. */
  takePlain(): void {
    this.#active++;
    this.#acquired++;
    if (this.#active >= this.#maxConcurrent) this.#fill();
  }

  /** Why such a request may not wait, if there is a reason. */
  objection(weight: number, extras: PermitExtras | undefined): WaitingObjection | undefined {
    return this.#waiting.objection(weight, extras);
  }

  /** Counts somebody who is turned away on arrival. */
  reject(): void {
    this.#rejected++;
  }

  /** Lets a permit wait that is not free. */
  enter(permit: WaitingPermit): Promise<Granted> {
    if (this.#hasRoom) this.#fill();
    this.#pauseTimer?.ref();
    return this.#waiting.enter(permit);
  }

  /** A waiter leaves with nothing: whoever could go on without it does. */
  giveUp(permit: WaitingPermit, reason: 'aborted' | 'timeout', cause: unknown): void {
    if (!this.#waiting.remove(permit)) return;
    this.#rejected++;
    const error =
      reason === 'timeout' ? new AcquireTimeoutError(figuresOf(this.#limiter, permit.waitMs)) : cause;
    permit.fail(reason, error);
    if (this.#waiting.size === 0) this.#pauseTimer?.unref();
    this.#admit();
  }

  /** Takes a permit back, and hands on what it held. */
  free(permit: LimiterPermit): void {
    this.#active -= permit.weight;
    if (!this.#hasRoom) {
      this.#drainRate.note(permit.weight, this.#active, this.#maxConcurrent);
      this.#admit();
    } else if (this.#active === 0) this.#idle?.check();
  }

  /** Growing admits at once; shrinking revokes nothing. */
  resize(maxConcurrent: number): void {
    this.#drainRate.rescale(maxConcurrent / this.#maxConcurrent);
    this.#maxConcurrent = maxConcurrent;
    this.#admit();
    if (this.#active >= maxConcurrent) this.#fill();
  }

  /** Gives nothing until `resume`; a `timer` that will call it keeps the process alive only while somebody waits. */
  pause(timer: NodeJS.Timeout | undefined): void {
    this.#paused = true;
    this.#hasRoom = false;
    this.#drainRate.end();
    this.#pauseTimer = timer;
    if (this.#waiting.size === 0) timer?.unref();
    else timer?.ref();
  }

  resume(): void {
    this.#paused = false;
    this.#pauseTimer?.unref();
    this.#pauseTimer = undefined;
    this.#admit();
    if (!this.#hasRoom) this.#fill();
  }

  /** Settles when nothing is held and nobody waits. */
  onIdle(): Promise<void> {
    this.#idle ??= new Milestone(() => this.#active === 0 && this.#waiting.size === 0);
    return this.#idle.reached();
  }

  /** Takes nobody new, and serves those who wait. */
  drain(): void {
    this.#shut();
    // A paused limiter would never empty. A Retry-After ends by itself, and holds till then.
    if (this.#adaptive === undefined || this.#adaptive.blockedForMs === 0) this.resume();
    else this.#admit();
  }

  /** Takes nobody new, and turns away those who wait. */
  turnAllAway(): void {
    this.#shut();
    const waiting = this.#waiting;
    for (let { next } = waiting; next !== undefined; next = waiting.next) {
      waiting.take(next);
      this.#rejected++;
      next.fail('closed', new LimiterClosedError(this.#limiter.name));
    }
    this.#pauseTimer?.unref();
    this.#admit();
  }

  #shut(): void {
    this.#isOpen = false;
    this.#hasRoom = false;
  }

  /** Whether newcomers may have permits at all. */
  #isServing(): boolean {
    return this.#isOpen && !this.#paused;
  }

  /** Whether the limit has room; for one that is heavier than a shrunken limit, whether it is all there is. */
  #fits(weight: number): boolean {
    return this.#active + weight <= this.#maxConcurrent || this.#active === 0;
  }

  #count(permit: LimiterPermit): void {
    this.#active += permit.weight;
    this.#acquired++;
    if (this.#adaptive !== undefined) this.#stamp(permit, this.#adaptive);
  }

  #stamp(permit: LimiterPermit, adaptive: AdaptiveLimit): void {
    permit.extras = { ...permit.extras, grantedMs: adaptive.clockMs() };
  }

  /** From now on a newcomer would have to wait. */
  #fill(): void {
    this.#hasRoom = false;
    // How fast room comes back says nothing while it may not be given.
    if (!this.#paused) this.#drainRate.begin();
  }

  /** Hands permits to the waiting, in order, as far as they reach. */
  #admit(): void {
    const waiting = this.#waiting;
    while (this.#active < this.#maxConcurrent) {
      const { next } = waiting;
      if (next === undefined) {
        this.#relax();
        return;
      }
      if (this.#paused) return;
      // Only with extras is one heavier than others, or may have been aborted.
      if (next.extras !== undefined && !this.#admits(next, next.extras)) {
        if (next.state === 'waiting') return;
        continue;
      }
      waiting.take(next);
      next.grant();
      this.#count(next);
    }
  }

  /** Whether the next may have its permit now. If not, it waits on, or has been passed over. */
  #admits(next: WaitingPermit, { signal }: PermitExtras): boolean {
    if (!this.#fits(next.weight)) return false;
    if (!signal?.aborted) return true;
    // Whoever made room did so in a listener of that signal, ahead of ours: the abort came first all the same.
    this.#waiting.remove(next);
    this.#rejected++;
    next.fail('aborted', signal.reason);
    return false;
  }

  /** Nobody waits, and there is room, unless it may not be given. */
  #relax(): void {
    this.#idle?.check();
    if (!this.#isServing()) return;
    this.#hasRoom = true;
    this.#drainRate.end();
  }
}
