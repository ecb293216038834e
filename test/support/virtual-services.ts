import type { LimitSample } from '../../src/limiter/adaptive-limit.js';
import { logNormal, seeded } from './random-numbers.js';
import type { VirtualTime } from './virtual-time.js';

/**
 * Services and their callers in virtual time, with a seeded source of chance. Nothing here waits, so an hour of traffic takes some milliseconds and comes out the same each time.
 */

/** How a service answered. */
export interface Answer {
  readonly ok: boolean;
  readonly retryAfterMs?: number;
}

type Done = (answer: Answer) => void;

/** Something that answers calls of so many tokens. */
export interface VirtualService {
  call(tokens: number, done: Done): void;
}

/** What one call gets from a service that is not overloaded. */
export const TOKENS_PER_SECOND = 48;
/** What a refusal takes to come back. */
const REFUSAL_MS = 50;

const FULL_SPEED_MS = 1000 / TOKENS_PER_SECOND;

/**
 * So many calls at once, each at full speed; some more may wait inside, and the rest is refused. Fewer slots do not end
 * what runs.
 */
export class SlotService implements VirtualService {
  slots: number;
  readonly #time: VirtualTime;
  readonly #mayWait: number;
  readonly #waiting: { readonly tokens: number; readonly done: Done }[] = [];
  #running = 0;

  constructor(time: VirtualTime, slots: number, mayWait = 0) {
    this.#time = time;
    this.slots = slots;
    this.#mayWait = mayWait;
  }

  /** vLLM's `num_requests_waiting`. */
  get waiting(): number {
    return this.#waiting.length;
  }

  call(tokens: number, done: Done): void {
    if (this.#running < this.slots) this.#run(tokens, done);
    else if (this.#waiting.length < this.#mayWait) this.#waiting.push({ tokens, done });
    else this.#time.after(REFUSAL_MS, () => done({ ok: false }));
  }

  #run(tokens: number, done: Done): void {
    this.#running++;
    this.#time.after(tokens * FULL_SPEED_MS, () => {
      this.#running--;
      while (this.#running < this.slots && this.#waiting.length > 0) {
        const next = this.#waiting.shift()!;
        this.#run(next.tokens, next.done);
      }
      done({ ok: true });
    });
  }
}

/** So many calls a minute, counted from the full minute, however many at once; a refusal says when the next begins. */
export class MinuteService implements VirtualService {
  readonly #time: VirtualTime;
  readonly #perMinute: number;
  #minute = -1;
  #left = 0;

  constructor(time: VirtualTime, perMinute: number) {
    this.#time = time;
    this.#perMinute = perMinute;
  }

  call(tokens: number, done: Done): void {
    const minute = Math.floor(this.#time.nowMs / 60_000);
    if (minute !== this.#minute) {
      this.#minute = minute;
      this.#left = this.#perMinute;
    }
    if (this.#left > 0) {
      this.#left--;
      this.#time.after(tokens * FULL_SPEED_MS, () => done({ ok: true }));
      return;
    }
    this.#time.after(REFUSAL_MS, () => {
      done({ ok: false, retryAfterMs: (minute + 1) * 60_000 - this.#time.nowMs });
    });
  }
}

/** What decides how many calls are under way. */
export interface Controller {
  readonly limit: number;
  readonly blockedForMs: number;
  onSample(sample: LimitSample): void;
}

const MEAN_TOKENS = 270;
/** A refused call comes back within this time, to the end of the queue. */
const RETRY_WITHIN_MS = 2000;

/**
 * Callers who each have one call at a time, and another as soon as it is answered. Their calls wait in one queue, and
 * go out as the controller allows. A refused call is tried again.
 */
export class Traffic {
  sent = 0;
  refused = 0;
  answered = 0;
  tokens = 0;
  readonly #queue: number[] = [];
  readonly #length: () => number;
  readonly #pause: () => number;
  #inFlight = 0;
  #wakesUp = false;

  constructor(
    readonly time: VirtualTime,
    readonly service: VirtualService,
    readonly controller: Controller,
    seed: number,
  ) {
    this.#length = logNormal(seeded(seed), MEAN_TOKENS, 1);
    this.#pause = seeded(seed + 1);
  }

  get refusedShare(): number {
    return this.refused / this.sent;
  }

  join(callers: number): void {
    for (let i = 0; i < callers; i++) this.#queue.push(this.#length());
    this.#go();
  }

  /** Runs up to a moment, and counts from zero from there on. */
  settleUntil(ms: number): void {
    this.time.runUntil(ms);
    this.sent = 0;
    this.refused = 0;
    this.answered = 0;
    this.tokens = 0;
  }

  #go(): void {
    const blockedMs = this.controller.blockedForMs;
    if (blockedMs > 0) {
      if (this.#wakesUp) return;
      this.#wakesUp = true;
      this.time.after(blockedMs, () => {
        this.#wakesUp = false;
        this.#go();
      });
      return;
    }
    while (this.#queue.length > 0 && this.#inFlight < this.controller.limit) this.#send(this.#queue.shift()!);
  }

  #send(tokens: number): void {
    const startedMs = this.time.nowMs;
    this.sent++;
    this.#inFlight++;
    this.service.call(tokens, ({ ok, retryAfterMs }) => {
      this.controller.onSample({
        startedMs,
        outcome: ok ? 'ok' : 'dropped',
        inFlight: this.#inFlight,
        ...(retryAfterMs !== undefined && { retryAfterMs }),
      });
      this.#inFlight--;
      if (ok) {
        this.answered++;
        this.tokens += tokens;
        this.#queue.push(this.#length());
      } else {
        this.refused++;
        this.time.after(RETRY_WITHIN_MS * this.#pause(), () => {
          this.#queue.push(tokens);
          this.#go();
        });
      }
      this.#go();
    });
  }
}
