import type { LimitSample } from '../../src/limiter/adaptive-limit.js';

/**
 * Services and their callers in virtual time: a heap of events, a clock that jumps from one to the next, and a seeded
 * source of chance. Nothing here waits, so an hour of traffic takes some milliseconds and comes out the same each time.
 */

/** Numbers from 0 up to 1, the same for the same seed (mulberry32). */
export function seeded(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296;
  };
}

/** Log-normal numbers of this mean; `sigma` is the spread of their logarithm. */
export function logNormal(random: () => number, mean: number, sigma: number): () => number {
  const mu = Math.log(mean) - (sigma * sigma) / 2;
  return () => {
    const gauss = Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
    return Math.exp(mu + sigma * gauss);
  };
}

interface Event {
  readonly atMs: number;
  /** Events of one moment happen in the order in which they were planned. */
  readonly order: number;
  readonly happen: () => void;
}

const before = (a: Event, b: Event): boolean => a.atMs < b.atMs || (a.atMs === b.atMs && a.order < b.order);

/** A clock and what is going to happen. */
export class VirtualTime {
  readonly #heap: Event[] = [];
  #nowMs = 0;
  #planned = 0;

  get nowMs(): number {
    return this.#nowMs;
  }

  after(ms: number, happen: () => void): void {
    const heap = this.#heap;
    const event = { atMs: this.#nowMs + ms, order: this.#planned++, happen };
    let at = heap.length;
    heap.push(event);
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!before(event, heap[parent]!)) break;
      heap[at] = heap[parent]!;
      at = parent;
    }
    heap[at] = event;
  }

  runUntil(endMs: number): void {
    while (this.#heap.length > 0 && this.#heap[0]!.atMs <= endMs) {
      const next = this.#pop();
      this.#nowMs = next.atMs;
      next.happen();
    }
    this.#nowMs = endMs;
  }

  #pop(): Event {
    const heap = this.#heap;
    const first = heap[0]!;
    const last = heap.pop()!;
    if (heap.length === 0) return first;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && before(heap[child + 1]!, heap[child]!)) child++;
      if (!before(heap[child]!, last)) break;
      heap[at] = heap[child]!;
      at = child;
    }
    heap[at] = last;
    return first;
  }
}

/** How a service answered. */
export interface Answer {
  readonly ok: boolean;
  readonly retryAfterMs?: number;
  /** Milliseconds a token took. */
  readonly perTokenMs?: number;
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

/** Refuses nobody: more calls at once than `fullSpeed` share its speed. A call keeps the speed that it begins with. */
export class SharedService implements VirtualService {
  readonly #time: VirtualTime;
  readonly #fullSpeed: number;
  #running = 0;

  constructor(time: VirtualTime, fullSpeed: number) {
    this.#time = time;
    this.#fullSpeed = fullSpeed;
  }

  call(tokens: number, done: Done): void {
    this.#running++;
    const perTokenMs = FULL_SPEED_MS * Math.max(1, this.#running / this.#fullSpeed);
    this.#time.after(tokens * perTokenMs, () => {
      this.#running--;
      done({ ok: true, perTokenMs });
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
  perTokenMs = 0;
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
    this.perTokenMs = 0;
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
    this.service.call(tokens, ({ ok, retryAfterMs, perTokenMs }) => {
      this.controller.onSample({
        startedMs,
        outcome: ok ? 'ok' : 'dropped',
        inFlight: this.#inFlight,
        ...(retryAfterMs !== undefined && { retryAfterMs }),
        ...(perTokenMs !== undefined && { normalisedLatencyMs: perTokenMs }),
      });
      this.#inFlight--;
      if (ok) {
        this.answered++;
        this.tokens += tokens;
        this.perTokenMs += perTokenMs ?? 0;
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
