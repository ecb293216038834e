import { NEUTRAL_CONTEXT } from '../internal/async-context.js';
import { nowMs, turnMs } from '../internal/clock.js';
import { Lane } from '../internal/lane.js';
import type { HostCallbacks } from './host-callbacks.js';
import type { Instance } from './instance.js';
import type { PoolSettings } from './pool-options.js';
import type { PoolTeller } from './pool-teller.js';
import type { Roster } from './roster.js';

/** What a creator works with. */
export interface CreatorParts<T> {
  readonly settings: PoolSettings<T>;
  readonly roster: Roster<T>;
  readonly teller: PoolTeller<T>;
  readonly callbacks: HostCallbacks<T>;
  /** How many creations are needed beyond those under way, and have room. */
  readonly needed: () => number;
  /** A creation begins: finds out whom it is for. */
  readonly began: (instance: Instance<T>) => void;
  /** An instance is there, in nobody's hands. */
  readonly done: (instance: Instance<T>) => void;
  /** The instance is struck off; its slot is free. */
  readonly failed: (instance: Instance<T>, error: unknown) => void;
  /** An instance came after its time was up. */
  readonly late: (instanceId: number, pipeline: T) => void;
}

/**
 * Creates instances, apart from those who wait for them.
 *
 * Invariants:
 * - A creation begins only if it is still needed at that moment.
 * - At most `createConcurrency` are under way at once; after a failure, one at a time until one succeeds.
 * - After a failure nothing begins for a while, drawn at random between `baseMs` and a ceiling that doubles with each
 *   such pause up to `maxMs` ("full jitter", https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/,
 *   with a floor). So a factory that always fails costs timers, never the event loop.
 */
export class Creator<T> {
  readonly #parts: CreatorParts<T>;
  readonly #settings: PoolSettings<T>;
  readonly #roster: Roster<T>;
  readonly #teller: PoolTeller<T>;
  readonly #lane: Lane;
  /** Failures in a row, and the pauses they have led to. */
  #failures = 0;
  #pauses = 0;
  #lastFailure: { readonly error: unknown } | undefined;
  #pause: { readonly timer: NodeJS.Timeout; readonly endsMs: number } | undefined;

  constructor(parts: CreatorParts<T>) {
    this.#parts = parts;
    this.#settings = parts.settings;
    this.#roster = parts.roster;
    this.#teller = parts.teller;
    this.#lane = new Lane({ concurrency: parts.settings.createConcurrency });
  }

  /** What the last creation failed with, until one succeeds. */
  get lastError(): unknown {
    return this.#lastFailure?.error;
  }

  /** Sees to it that `count` creations begin as soon as they may; a pause keeps the process alive if somebody waits. */
  want(count: number, somebodyWaits: boolean): void {
    if (somebodyWaits) this.#pause?.timer.ref();
    // An attempt that waits in the lane asks again, when its turn comes, whether it is needed.
    for (let planned = this.#lane.waiting; planned < count; planned++) void this.#lane.run(this.#attempt);
  }

  /** Begins nothing any more. */
  close(): void {
    clearTimeout(this.#pause?.timer);
    this.#lane.clear();
  }

  readonly #attempt = (): Promise<void> => NEUTRAL_CONTEXT.run(() => this.#create());

  async #create(): Promise<void> {
    const { callbacks, needed, late } = this.#parts;
    if (needed() < 1) return;
    const { instance, call } = this.#roster.enter((id) =>
      callbacks.create(id, (pipeline) => late(id, pipeline)),
    );
    const beganMs = nowMs();
    this.#parts.began(instance);
    this.#teller.creating(instance.id);
    try {
      instance.pipeline = await call.run();
    } catch (error) {
      this.#failed(instance, error, nowMs() - beganMs);
      return;
    }
    this.#succeeded(instance, nowMs() - beganMs);
  }

  #succeeded(instance: Instance<T>, createMs: number): void {
    this.#failures = 0;
    this.#pauses = 0;
    this.#lastFailure = undefined;
    this.#lane.concurrency = this.#settings.createConcurrency;
    instance.bornMs = turnMs();
    instance.usedMs = instance.bornMs;
    instance.goodMs = instance.bornMs;
    this.#roster.created++;
    this.#teller.created(instance.id, createMs);
    this.#parts.done(instance);
  }

  #failed(instance: Instance<T>, error: unknown, createMs: number): void {
    this.#failures++;
    this.#lastFailure = { error };
    this.#lane.concurrency = 1;
    this.#roster.createFailed++;
    this.#roster.leave(instance);
    // Creations that were under way together fail together: that is one reason to pause, not several.
    const pause = this.#pause ?? this.#beginPause();
    const retryInMs = Math.max(0, pause.endsMs - nowMs());
    this.#teller.createFailed(instance.id, { error, createMs, failures: this.#failures, retryInMs });
    this.#parts.failed(instance, error);
  }

  #beginPause() {
    const { baseMs, maxMs } = this.#settings.createRetry;
    const ceiling = Math.min(maxMs, baseMs * 2 ** ++this.#pauses);
    const pauseMs = baseMs + Math.random() * (ceiling - baseMs);
    this.#lane.pause();
    const timer = setTimeout(() => {
      this.#pause = undefined;
      this.#lane.resume();
    }, pauseMs).unref();
    this.#pause = { timer, endsMs: nowMs() + pauseMs };
    return this.#pause;
  }
}
