import type { VirtualTime } from './virtual-time.js';

/**
 * An LLM server with continuous batching, as vLLM schedules it, in virtual time. The step times are those that a model of
 * 2.3 billion parameters was measured to take on an H200, so that a limit in front of it meets the knee of a real server.
 */

/** One request to the server. Times are of the virtual clock. */
export interface LlmRequest {
  readonly promptTokens: number;
  readonly maxTokens: number;
  /** Lower goes first. */
  readonly priority: number;
  /** A token was generated; `first` is the first one. */
  onToken(first: boolean): void;
  onDone(): void;
}

interface Running extends LlmRequest {
  tokens: number;
  blocks: number;
  slot: number;
  order: number;
  isGone: boolean;
}

const BLOCK = 16;
const PLACES = 128;
const KV_BLOCKS = 20_480 / BLOCK;
const PREFILL_TOKENS = 2_048;
const LONGEST = 768;

/** Decode steps pad to these sizes, as CUDA graphs do. */
const BATCHES = [1, 2, 4, 8, 16, 32, 48, 64, 80, 96, 128];
const LENGTHS = [256, 512, 640, 768];
/** Milliseconds of a decode step at lengths of 256 and 768, by batch. */
const DECODE_MS = [
  [1, 2.966, 3.573],
  [8, 3.272, 4.129],
  [16, 3.66, 5.045],
  [32, 4.198, 6.467],
  [64, 5.39, 9.576],
  [96, 7.2, 13.9],
  [128, 7.95, 16.318],
] as const;

const paddedTo = (sizes: readonly number[], size: number): number =>
  sizes.find((padded) => padded >= size) ?? sizes.at(-1)!;

function decodeMs(batch: number, length: number): number {
  const padded = paddedTo(BATCHES, batch);
  const upper = DECODE_MS.findIndex(([size]) => size >= padded);
  const high = DECODE_MS[upper]!;
  const low = high[0] === padded ? high : DECODE_MS[upper - 1]!;
  const share = high === low ? 0 : (padded - low[0]) / (high[0] - low[0]);
  const short = low[1] + share * (high[1] - low[1]);
  const long = low[2] + share * (high[2] - low[2]);
  return short + ((long - short) * (paddedTo(LENGTHS, length) - 256)) / 512 + 0.2;
}

const padded64 = (tokens: number): number => Math.ceil(tokens / 64) * 64;
const prefillMs = (padded: number): number => Math.max(8.6, 3.3 + 0.0092 * padded);

export class LlmServer {
  /** Requests that are refused beyond so many in flight; vLLM refuses none by default. */
  maxInFlight = Number.POSITIVE_INFINITY;
  /** How much slower a step is than measured, each with noise of its own. */
  slowdown: () => number = () => 1;
  readonly #time: VirtualTime;
  #running: Running[] = [];
  /** In the order of priority and arrival. */
  readonly #waiting: Running[] = [];
  readonly #slots: boolean[] = Array.from({ length: PLACES }, () => false);
  #freeBlocks = KV_BLOCKS;
  #arrivals = 0;
  #isStepping = false;

  constructor(time: VirtualTime) {
    this.#time = time;
  }

  get running(): number {
    return this.#running.length;
  }

  /** vLLM's `num_requests_waiting`. */
  get waiting(): number {
    return this.#waiting.length;
  }

  /** Returns how to abort it; `undefined` if it is refused. */
  submit(request: LlmRequest): (() => void) | undefined {
    if (this.#running.length + this.#waiting.length >= this.maxInFlight) return undefined;
    const added = Object.assign(request, {
      tokens: 0,
      blocks: 0,
      slot: -1,
      order: ++this.#arrivals,
      isGone: false,
    });
    this.#enqueue(added);
    if (!this.#isStepping) {
      this.#isStepping = true;
      this.#time.after(0, () => this.#step());
    }
    return () => this.#abort(added);
  }

  #enqueue(request: Running): void {
    let at = this.#waiting.length;
    while (at > 0 && isBefore(request, this.#waiting[at - 1]!)) at--;
    this.#waiting.splice(at, 0, request);
  }

  #abort(request: Running): void {
    if (request.isGone) return;
    request.isGone = true;
    if (request.slot >= 0) this.#leave(request);
    else this.#waiting.splice(this.#waiting.indexOf(request), 1);
  }

  #leave(request: Running): void {
    this.#slots[request.slot] = false;
    request.slot = -1;
    this.#freeBlocks += request.blocks;
    request.blocks = 0;
    this.#running.splice(this.#running.indexOf(request), 1);
  }

  /** Whom to prefill in this step: one padded batch. */
  #admit(): { batch: Running[]; padded: number } {
    const batch: Running[] = [];
    let longest = 0;
    for (let next = this.#waiting[0]; next !== undefined; next = this.#waiting[0]) {
      const context = next.promptTokens + next.tokens;
      const need = Math.ceil((context + 1) / BLOCK);
      const keep = this.#running.length > 0 ? Math.floor(KV_BLOCKS / 100) : 0;
      const padded = Math.max(longest, padded64(context));
      if (this.#running.length >= PLACES || need + keep > this.#freeBlocks) break;
      if (batch.length > 0 && padded * (batch.length + 1) > PREFILL_TOKENS) break;
      this.#waiting.shift();
      longest = padded;
      next.slot = this.#slots.indexOf(false);
      this.#slots[next.slot] = true;
      next.blocks = need;
      this.#freeBlocks -= need;
      this.#running.push(next);
      batch.push(next);
    }
    return { batch, padded: longest * batch.length };
  }

  #step(): void {
    const { batch, padded } = this.#admit();
    if (batch.length === 0) {
      this.#decode();
      return;
    }
    this.#time.after(this.slowdown() * prefillMs(padded), () => {
      for (const request of batch) this.#got(request);
      this.#decode();
    });
  }

  #decode(): void {
    this.#makeRoom();
    if (this.#running.length === 0) {
      this.#isStepping = this.#waiting.length > 0;
      if (this.#isStepping) this.#step();
      return;
    }
    let highest = 0;
    let longest = 0;
    for (const { slot, promptTokens, tokens } of this.#running) {
      highest = Math.max(highest, slot + 1);
      longest = Math.max(longest, promptTokens + tokens);
    }
    this.#time.after(this.slowdown() * decodeMs(highest, longest), () => {
      for (const request of [...this.#running]) this.#got(request);
      this.#step();
    });
  }

  /** A block for each that fills its last one; the newest request is preempted where there is none. */
  #makeRoom(): void {
    for (const request of [...this.#running].sort((a, b) => (isBefore(a, b) ? -1 : 1))) {
      while (request.slot >= 0 && request.promptTokens + request.tokens + 1 > request.blocks * BLOCK) {
        if (this.#freeBlocks > 0) {
          this.#freeBlocks--;
          request.blocks++;
          continue;
        }
        const newest = this.#running.reduce((a, b) => (isBefore(a, b) ? b : a));
        this.#leave(newest);
        this.#enqueue(newest);
      }
    }
  }

  #got(request: Running): void {
    if (request.isGone || request.slot < 0) return;
    request.onToken(++request.tokens === 1);
    if (request.tokens < Math.min(request.maxTokens, LONGEST / 2)) return;
    this.#leave(request);
    request.isGone = true;
    request.onDone();
  }
}

const isBefore = (a: Running, b: Running): boolean =>
  a.priority < b.priority || (a.priority === b.priority && a.order < b.order);
