import type { AbortListener } from '../../internal/abort.js';
import { afterThisTurn, settleInTurn } from '../../internal/clock.js';
import { JobQueue } from '../../internal/job-queue.js';
import { MAX_TIMER_MS } from '../../internal/validate.js';
import type { CallBounds } from '../call-context.js';
import type { KeyReservation } from './api-key.js';
import type { KeyRing, NoCapacity } from './key-ring.js';

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
  /** Whether the limiter grants no permits now: calls with a permit release it, and wait for it to resume. */
  isLimiterPaused: () => boolean;
  /** A start at once, where no call waits and a key has capacity. */
  tryEnter(weight: number): KeyReservation | undefined;
  /** Waits for a start; `undefined` if all keys are in cooldown now. Rejects with the call's reason. */
  enter(options: StartOptions): Promise<KeyReservation | undefined>;
  /** Checks again whether calls can start: something has changed. */
  check(): void;
}

class StartRequest implements AbortListener {
  readonly options: StartOptions;
  readonly #startQueue: StartQueue;
  readonly #resolve: (reservation: KeyReservation | undefined) => void;
  readonly #reject: (reason: unknown) => void;
  /** Its priority in the job queue; half a step higher once it has been first. */
  rank: number;
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
    this.rank = options.priority;
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

/** The turn of the first request; it lasts until `endTurn`. */
interface Turn {
  readonly request: StartRequest;
  readonly endTurn: () => void;
}

/** How many calls are sent back in one turn of the event loop: each releases its permit to the next, which may follow. */
const BATCH_SIZE = 100;
/** How many starts are granted in one turn of the event loop. */
const MAX_STARTS = 200;
/** Settled requests may stay in the job queue until this many more than live ones are there. */
const MAX_SETTLED = 64;

/**
 * Grants starts, one at a time and in order. A job queue of concurrency 1 keeps the order; the job of the first request
 * runs until a key has capacity in all its windows, and charges them in that step.
 *
 * Invariants:
 * - The first request starts first: none behind it starts, however light, unless its priority is higher. Then the first
 *   steps back behind it, and stays in front of its equals.
 * - It waits for an exact time, on one timer, without polling.
 * - A call that ends early leaves in that step, at no cost to the others.
 * - A call that cannot start within its deadline is rejected as soon as that is certain.
 * - However many may start at once, a turn of the event loop starts no more than `MAX_STARTS`.
 * - While all keys are in cooldown the queue is empty: calls with a permit wait only for windows, or for a probe.
 */
export class StartQueue implements Starts {
  readonly #ring: KeyRing;
  readonly #jobs = new JobQueue({ concurrency: 1 });
  #first: Turn | undefined;
  #timer: NodeJS.Timeout | undefined;
  readonly #requests = new Set<StartRequest>();
  /** Whether the limiter grants no permits now: calls with a permit release it, and wait for it to resume. */
  isLimiterPaused: () => boolean = () => false;
  /** Starts granted in this turn of the event loop. */
  #granted = 0;
  #sentBack = 0;
  #nextBatch: NodeJS.Immediate | undefined;
  /** Jobs of settled requests, which the job queue has not reached. */
  #settledJobs = 0;

  constructor(ring: KeyRing) {
    this.#ring = ring;
  }

  /** Calls that wait here. */
  get queued(): number {
    return this.#requests.size;
  }

  /** A start at once, where no call waits and a key has capacity. */
  tryEnter(weight: number): KeyReservation | undefined {
    if (this.#requests.size > 0 || this.isLimiterPaused()) return undefined;
    const taken = this.#ring.take(weight, this.#ring.now());
    return 'key' in taken ? taken : undefined;
  }

  /** Waits for a start; `undefined` if all keys are in cooldown now. Rejects with the call's reason. */
  enter(options: StartOptions): Promise<KeyReservation | undefined> {
    return new Promise((resolve, reject) => {
      const request = new StartRequest(this, options, resolve, reject);
      this.#requests.add(request);
      const first = this.#first;
      if (first !== undefined && options.priority > first.request.options.priority) this.#stepBack(first);
      this.#join(request);
    });
  }

  /** Checks again whether the first can start: something has changed. */
  check(): void {
    if (this.#first !== undefined) this.#offer(this.#first);
  }

  /** A request is settled. */
  leave(request: StartRequest): void {
    this.#requests.delete(request);
    if (this.#first?.request === request) this.#endTurn(this.#first);
    else if (++this.#settledJobs > this.#requests.size + MAX_SETTLED) this.#rebuild();
  }

  #join(request: StartRequest): void {
    void this.#jobs.run(() => this.#serve(request), { priority: request.rank });
  }

  #serve(request: StartRequest): Promise<void> | void {
    if (request.settled) {
      this.#settledJobs--;
      return;
    }
    return new Promise((endTurn) => {
      this.#first = { request, endTurn };
      this.#offer(this.#first);
    });
  }

  #offer(first: Turn): void {
    // It is offered again in the next turn.
    if (this.#granted >= MAX_STARTS) return;
    const { request } = first;
    const { weight, onUnmeetable, onWait } = request.options;
    const now = this.#ring.now();
    if (this.isLimiterPaused()) {
      this.#sendBack(() => true);
      return;
    }
    const taken = this.#ring.take(weight, now);
    if (this.#first !== first) {
      // A listener of `key:restored` changed the queue meanwhile.
      if ('key' in taken) this.#ring.end(taken);
      return;
    }
    if ('key' in taken) {
      if (this.#granted++ === 0)
        afterThisTurn(() => {
          const isFull = this.#granted >= MAX_STARTS;
          this.#granted = 0;
          if (isFull) this.check();
        });
      request.settle(taken);
      this.leave(request);
      return;
    }
    if (this.#ring.retryAfterMs(now, weight) > 0) {
      this.#sendBack((other) => this.#ring.retryAfterMs(now, other) > 0);
      return;
    }
    const closedMs = this.#ring.certainlyClosedMs(weight, now);
    if (closedMs > 0) onUnmeetable(closedMs);
    if (request.settled) return;
    clearTimeout(this.#timer);
    // A timer may fire a moment early: it checks again, and finds what is left.
    this.#timer = setTimeout(() => this.#offer(first), Math.min(Math.ceil(taken.retryAfterMs), MAX_TIMER_MS));
    if (!request.emittedWait) {
      request.emittedWait = true;
      onWait?.(taken);
    }
  }

  /** Sends calls back that would wait here for something else than windows, where each holds a permit. */
  #sendBack(isClosed: (weight: number) => boolean): void {
    for (const request of this.#requests) {
      if (!isClosed(request.options.weight)) continue;
      if (this.#sentBack === BATCH_SIZE) return;
      this.#sentBack++;
      this.#nextBatch ??= setImmediate(() => {
        this.#sentBack = 0;
        this.#nextBatch = undefined;
        this.check();
      });
      request.settle(undefined);
      this.leave(request);
    }
  }

  /** Lets a higher priority pass. The job queue takes its next job only after this step, so both are in it. */
  #stepBack(first: Turn): void {
    // Priorities are whole numbers: half a step is in front of all equals, and behind every higher one.
    first.request.rank = first.request.options.priority + 0.5;
    this.#endTurn(first);
    this.#join(first.request);
  }

  #endTurn(first: Turn): void {
    clearTimeout(this.#timer);
    this.#first = undefined;
    first.endTurn();
  }

  /** Drops the jobs of settled requests. p-queue removes a job only by searching for it. */
  #rebuild(): void {
    this.#jobs.clear();
    this.#settledJobs = 0;
    for (const request of this.#requests) if (request !== this.#first?.request) this.#join(request);
  }
}
