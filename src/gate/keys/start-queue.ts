import type { AbortListener } from '../../internal/abort.js';
import { afterThisTurn, PER_TURN, settleInTurn } from '../../internal/clock.js';
import { JobQueue } from '../../internal/job-queue.js';
import type { CallBounds } from '../call-context.js';
import { WakeUpTimer } from '../wait.js';
import type { KeyReservation } from './api-key.js';
import type { NoCapacity } from './best-key.js';
import type { KeyRing } from './key-ring.js';

/** How a call asks for a start. */
export interface StartOptions {
  readonly weight: number;
  /** Higher goes first; a whole number. */
  readonly priority: number;
  readonly bounds: CallBounds;
  /** Called while it is first, with the time for which it certainly cannot start. It may end the call. */
  readonly onUnmeetable: (closedMs: number) => void;
  /** Called once, when it is first and has to wait. */
  readonly onWait: ((capacity: NoCapacity) => void) | undefined;
}

/** Where calls with a permit wait for a key with capacity. */
export interface Starts {
  /** Calls that wait here. */
  readonly queued: number;
  /** A start at once, where no call waits and a key has capacity. */
  tryEnter(weight: number): KeyReservation | undefined;
  /** Waits for a start; `undefined` if all keys are in cooldown now. Rejects with the call's reason. */
  enter(options: StartOptions): Promise<KeyReservation | undefined>;
  /** Checks again whether calls can start: something has changed. */
  check(): void;
}

/** A call that waits. */
class StartRequest implements AbortListener {
  readonly options: StartOptions;
  readonly #startQueue: StartQueue;
  readonly #resolve: (reservation: KeyReservation | undefined) => void;
  readonly #reject: (reason: unknown) => void;
  settled = false;
  emittedWait = false;

  constructor(
    startQueue: StartQueue,
    options: StartOptions,
    resolve: (reservation: KeyReservation | undefined) => void,
    reject: (reason: unknown) => void,
  ) {
    this.#startQueue = startQueue;
    this.options = options;
    this.#resolve = resolve;
    this.#reject = reject;
    options.bounds.addEventListener('abort', this);
  }

  /** With a reservation, or without one where all keys are in cooldown. */
  settle(reservation: KeyReservation | undefined): void {
    this.settled = true;
    this.options.bounds.removeEventListener('abort', this);
    this.#resolve(reservation);
  }

  handleEvent(): void {
    this.settled = true;
    settleInTurn(() => this.#reject(this.options.bounds.reason));
    this.#startQueue.leave(this);
  }
}

/** The calls of one priority, in the order of their arrival, with one job for all of them. */
interface Level {
  readonly priority: number;
  readonly requests: Set<StartRequest>;
  /** Ends the job, while it runs. */
  endTurn: () => void;
}

/**
 * Grants starts, one at a time and in order. A job queue of concurrency 1 chooses between the priorities: the job of a
 * priority runs as long as calls of it wait. It waits until a key has capacity in all its windows for the first of them,
 * and charges them in that step.
 *
 * Invariants:
 * - The first request starts first: none behind it starts, however light, unless its priority is higher. Then the job of the
 *   lower priority ends, and queues again.
 * - It waits for an exact time, on one timer, without polling. All that may start then start in that step.
 * - A call that ends early leaves in that step, at no cost to the others.
 * - A call that cannot start within its deadline is rejected as soon as that is certain.
 * - However many may start at once, a turn of the event loop starts no more than `PER_TURN`.
 * - While all keys are in cooldown the queue is empty: calls with a permit wait only for windows, or for a probe.
 */
export class StartQueue implements Starts {
  readonly #ring: KeyRing;
  readonly #isLimiterPaused: () => boolean;
  readonly #jobs = new JobQueue({ concurrency: 1 });
  /** Those that have a job, by priority. */
  readonly #levels = new Map<number, Level>();
  /** The one whose job runs. */
  #first: Level | undefined;
  #queued = 0;
  readonly #timer = new WakeUpTimer(() => this.check());
  /** Starts granted in this turn of the event loop. */
  #granted = 0;
  /** Calls sent back in this turn of the event loop. */
  #sentBack = 0;
  #willCheck = false;

  /** @param isLimiterPaused whether it grants no permits now: calls with a permit release it, and wait for it to resume */
  constructor(ring: KeyRing, isLimiterPaused: () => boolean) {
    this.#ring = ring;
    this.#isLimiterPaused = isLimiterPaused;
  }

  get queued(): number {
    return this.#queued;
  }

  tryEnter(weight: number): KeyReservation | undefined {
    if (this.#queued > 0 || this.#granted >= PER_TURN || this.#isLimiterPaused()) return undefined;
    const taken = this.#ring.take(weight, this.#ring.now());
    if (!('key' in taken)) return undefined;
    this.#count();
    return taken;
  }

  enter(options: StartOptions): Promise<KeyReservation | undefined> {
    return new Promise((resolve, reject) => {
      const request = new StartRequest(this, options, resolve, reject);
      const { priority } = options;
      this.#queued++;
      const level = this.#levels.get(priority);
      if (level !== undefined) level.requests.add(request);
      else {
        const first = this.#first;
        if (first !== undefined && priority > first.priority) {
          // The job queue takes its next job only after this step: both are in it then.
          this.#endTurn(first);
          this.#join(first);
        }
        this.#join({ priority, requests: new Set([request]), endTurn: () => {} });
      }
    });
  }

  check(): void {
    if (this.#first !== undefined) this.#offer(this.#first);
  }

  /** A call ends early. */
  leave(request: StartRequest): void {
    this.#remove(request);
    this.#checkSoon();
  }

  #remove(request: StartRequest): void {
    const level = this.#levels.get(request.options.priority) as Level;
    level.requests.delete(request);
    this.#queued--;
    if (level !== this.#first || level.requests.size > 0) return;
    this.#levels.delete(level.priority);
    this.#endTurn(level);
  }

  /** Another call may be first: checks once, however many end in this step. */
  #checkSoon(): void {
    if (this.#willCheck) return;
    this.#willCheck = true;
    queueMicrotask(() => {
      this.#willCheck = false;
      this.check();
    });
  }

  #join(level: Level): void {
    this.#levels.set(level.priority, level);
    void this.#jobs.run(() => this.#serve(level), { priority: level.priority });
  }

  #serve(level: Level): Promise<void> | void {
    if (level.requests.size === 0) {
      this.#levels.delete(level.priority);
      return;
    }
    return new Promise((endTurn) => {
      level.endTurn = endTurn;
      this.#first = level;
      this.#offer(level);
    });
  }

  #endTurn(level: Level): void {
    this.#timer.stop();
    this.#first = undefined;
    level.endTurn();
  }

  /** Starts the first calls of a level, as far as keys have capacity. */
  #offer(level: Level): void {
    if (this.#isLimiterPaused()) {
      this.#sendBack(() => true);
      return;
    }
    for (const request of level.requests) {
      // What is left is offered in the next turn.
      if (this.#granted >= PER_TURN || !this.#start(level, request)) return;
    }
  }

  /** Starts a call that is first. Returns whether the next is first now. */
  #start(level: Level, request: StartRequest): boolean {
    const { weight, onUnmeetable, onWait } = request.options;
    const now = this.#ring.now();
    const taken = this.#ring.take(weight, now);
    if (this.#first !== level || request.settled) {
      // A listener of `key:restored` changed the queue meanwhile.
      if ('key' in taken) this.#ring.end(taken);
      return false;
    }
    if ('key' in taken) {
      this.#count();
      request.settle(taken);
      this.#remove(request);
      return true;
    }
    if (this.#ring.retryAfterMs(now, weight) > 0) {
      this.#sendBack((other) => this.#ring.retryAfterMs(now, other) > 0);
      return false;
    }
    const closedMs = this.#ring.certainlyClosedMs(weight, now);
    if (closedMs > 0) onUnmeetable(closedMs);
    if (request.settled) return false;
    this.#timer.set(now, taken.retryAfterMs);
    if (!request.emittedWait) {
      request.emittedWait = true;
      onWait?.(taken);
    }
    return false;
  }

  #count(): void {
    if (this.#granted++ > 0) return;
    afterThisTurn(() => {
      const isFull = this.#granted >= PER_TURN;
      this.#granted = 0;
      if (isFull) this.check();
    });
  }

  /** Sends calls back that would wait here for something else than windows. The permit of each goes to the next, which may follow. */
  #sendBack(isClosed: (weight: number) => boolean): void {
    for (const { requests } of this.#levels.values())
      for (const request of requests) {
        if (!isClosed(request.options.weight)) continue;
        if (this.#sentBack === PER_TURN) return;
        if (this.#sentBack++ === 0)
          afterThisTurn(() => {
            this.#sentBack = 0;
            this.check();
          });
        request.settle(undefined);
        this.#remove(request);
      }
  }
}
