import { vi } from 'vitest';
import type { QueueFullError } from '../../src/errors.js';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import type { AcquireOptions, Permit } from '../../src/limiter/limiter.js';
import { LimiterModel } from './limiter-models.js';
import { endOfTurn } from './promises.js';

/** Whose request it is, and how heavy. */
export type Asked = Pick<AcquireOptions, 'tenant' | 'priority' | 'weight'>;

export interface Load {
  readonly maxConcurrent: number;
  readonly maxQueue: number;
  /** When requests arrive, in order. */
  readonly arrivals: readonly number[];
  /** How long a request holds its permit. */
  holdMs(): number;
  /** Whose the request of this arrival is; all are alike without it. */
  readonly askedBy?: (arrival: number) => Asked;
  /** Whose estimates are recorded; all without it. */
  readonly looksAt?: (asked: Asked, atMs: number) => boolean;
  /** When the limit becomes another one. */
  readonly resized?: { readonly atMs: number; readonly to: number };
}

/** The estimate that a rejected request got, and what its wait would have been. */
export interface Rejection {
  readonly retryAfterMs: number;
  readonly realMs: number;
}

interface Act {
  readonly atMs: number;
  readonly does: 'ask' | 'release' | 'resize';
  readonly arrival: number;
}

/** What is going to happen, the next first; of one moment, the first planned happens first. */
class Agenda {
  readonly #acts: Act[];

  constructor(acts: readonly Act[]) {
    this.#acts = [...acts];
  }

  static of({ arrivals, resized }: Load): Agenda {
    const agenda = new Agenda(arrivals.map((atMs, arrival) => ({ atMs, does: 'ask', arrival })));
    if (resized !== undefined) agenda.plan({ atMs: resized.atMs, does: 'resize', arrival: -1 });
    return agenda;
  }

  plan(act: Act): void {
    const later = this.#acts.findIndex(({ atMs }) => atMs > act.atMs);
    this.#acts.splice(later === -1 ? this.#acts.length : later, 0, act);
  }

  next(): Act | undefined {
    return this.#acts.shift();
  }

  clone(): Agenda {
    return new Agenda(this.#acts);
  }
}

/** A load that the model plays. */
class ModelPlay {
  /** How long the rejected requests would have waited, by arrival. */
  readonly realMs = new Map<number, number>();
  readonly #holds: readonly number[];
  #scheduled = 0;

  constructor(
    readonly load: Load,
    holds: readonly number[],
    readonly model = new LimiterModel(load.maxConcurrent, load.maxQueue),
    readonly agenda = Agenda.of(load),
  ) {
    this.#holds = holds;
  }

  playOut(): this {
    for (let act = this.agenda.next(); act !== undefined; act = this.agenda.next()) {
      this.#do(act);
      const { arrival, atMs } = act;
      if (this.model.outcomes.get(arrival) !== 'queue-full') continue;
      const { askedBy, looksAt } = this.load;
      if (looksAt?.(askedBy?.(arrival) ?? {}, atMs) === false) continue;
      const freeAt = this.#grantedAt(act);
      if (freeAt !== undefined) this.realMs.set(arrival, freeAt - atMs);
    }
    return this;
  }

  /** When a rejected request would have had its permit: the remaining load, with that request admitted. */
  #grantedAt(refused: Act): number | undefined {
    const { model, load } = this;
    const other = new ModelPlay(load, this.#holds, model.clone(), this.agenda.clone());
    other.model.maxQueue = Number.POSITIVE_INFINITY;
    other.#do(refused);
    other.model.maxQueue = load.maxQueue;
    for (let act = other.agenda.next(); act !== undefined; act = other.agenda.next()) {
      other.#do(act);
      if (other.model.outcomes.has(refused.arrival)) return act.atMs;
    }
    return undefined;
  }

  #do({ atMs, does, arrival }: Act): void {
    const { model, load } = this;
    const grant = (granted: number) =>
      this.agenda.plan({ atMs: atMs + this.#holds[granted]!, does: 'release', arrival: granted });
    const { weight = 1, priority = 0, tenant } = load.askedBy?.(arrival) ?? {};
    if (does === 'release') model.release(weight);
    else if (does === 'resize') model.resize(load.resized!.to);
    else if (
      model.request({ id: arrival, weight, priority, tenant, signal: undefined, timeoutMs: undefined })
    )
      grant(arrival);
    while (this.#scheduled < model.grantedAfterWaiting.length)
      grant(model.grantedAfterWaiting[this.#scheduled++]!);
  }
}

/**
 * Plays a load on a limiter in virtual time, the clock being moved from one arrival or release to the next. What those
 * rejected requests would have waited is what they wait in the model, admitted one at a time.
 */
export async function play(load: Load): Promise<Rejection[]> {
  const { maxConcurrent, maxQueue, arrivals, holdMs, askedBy, resized } = load;
  const holds = arrivals.map(() => holdMs());
  const { model, realMs } = new ModelPlay(load, holds).playOut();
  let clock = 0;
  const spied = vi.spyOn(performance, 'now').mockImplementation(() => clock);
  await endOfTurn();
  const limiter = new ConcurrencyLimiter({ maxConcurrent, maxQueue, fairBy: 'requests' });
  const agenda = Agenda.of(load);
  const permits = new Map<number, Permit>();
  const refused: Rejection[] = [];
  const request = (arrival: number) => {
    limiter.acquire(askedBy?.(arrival)).then(
      (permit) => {
        permits.set(arrival, permit);
        agenda.plan({ atMs: clock + holds[arrival]!, does: 'release', arrival });
      },
      ({ retryAfterMs }: QueueFullError) => {
        const real = realMs.get(arrival);
        if (real !== undefined) refused.push({ retryAfterMs, realMs: real });
      },
    );
  };
  try {
    for (let act = agenda.next(); act !== undefined; act = agenda.next()) {
      clock = act.atMs;
      if (act.does === 'ask') request(act.arrival);
      else if (act.does === 'release') permits.get(act.arrival)?.release();
      else limiter.maxConcurrent = resized!.to;
      // Two, as what is read in the microtasks of the first holds until the end of the second.
      await endOfTurn();
      await endOfTurn();
    }
    if (limiter.stats().rejected !== model.rejected) throw new Error('It plays otherwise than the model');
  } finally {
    spied.mockRestore();
    await endOfTurn();
  }
  return refused;
}
