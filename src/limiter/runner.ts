import { AsyncLocalStorage } from 'node:async_hooks';
import type { RunContext } from './limiter.js';
import { giveBack, type LimiterPermit, type PermitIssuer, type WaitingPermit } from './permit.js';

/** What a host hands to `run`. */
export type Work<R> = (context: RunContext) => R | PromiseLike<R>;

/** A run that code is inside of, and the one around it. */
interface Inside {
  readonly permit: LimiterPermit;
  outer: Inside | undefined;
}

// One for all limiters: each one that was ever used makes every `await` of the process dearer, for as long as it lasts.
const inside = new AsyncLocalStorage<Inside>();

/** The nearest run whose permit is still held. */
function nearestHeld(from: Inside | undefined): Inside | undefined {
  let at = from;
  while (at !== undefined && at.permit.state !== 'held') at = at.outer;
  return at;
}

/**
 * Runs the host's code under a permit and gives the permit back when it ends, however it ends. Settles as the code does.
 *
 * Plain `then` calls: an async function would cost a third more.
 */
export class Runner {
  readonly #detectNested: boolean;

  constructor(detectNested: boolean) {
    this.#detectNested = detectNested;
  }

  /** Whether the caller runs, at any depth, under a permit of this limiter that is held. False without `detectNested`. */
  isInside(issuer: PermitIssuer): boolean {
    if (!this.#detectNested) return false;
    let at = nearestHeld(inside.getStore());
    while (at !== undefined && at.permit.issuer !== issuer) at = nearestHeld(at.outer);
    return at !== undefined;
  }

  /** Runs what has waited; `ticket` is what its promise brought. */
  runNext(ticket: number): Promise<unknown> {
    const end = begins[ticket] as RunEnd;
    begins[ticket] = undefined;
    const permit = end.permit as WaitingPermit;
    const work = permit.work as Work<unknown>;
    permit.work = undefined;
    return this.run(permit, work, end);
  }

  run<R>(permit: LimiterPermit, work: Work<R>, waited?: RunEnd): Promise<R> {
    const signal = permit.extras?.signal;
    // The grant came before the abort, but nothing has begun yet.
    if (signal?.aborted) return fail(permit, waited, signal.reason);
    const context = { signal, permit };
    try {
      const given = this.#detectNested ? runInside(permit, work, context) : work(context);
      const answer = isPlainPromise(given) ? given : promiseOf(given);
      const end = waited ?? endOf(permit);
      return answer.then(end.onResult as (result: R) => R, end.onError);
    } catch (error) {
      return fail(permit, waited, error);
    }
  }
}

/** One with a `then` of its own might call back twice, and an end serves another run by then. */
const isPlainPromise = <R>(given: R | PromiseLike<R>): given is Promise<R> =>
  (given as Promise<R> | undefined)?.constructor === Promise &&
  (given as Promise<R>).then === Promise.prototype.then;

const promiseOf = <R>(given: R | PromiseLike<R>): Promise<R> => new Promise((resolve) => resolve(given));

/** The end of a run that has not begun, or not got far enough to have anything to wait for. */
function fail(permit: LimiterPermit, waited: RunEnd | undefined, error: unknown): Promise<never> {
  waited?.takePermit();
  permit.release('ignored');
  return Promise.reject(error);
}

function runInside<R>(permit: LimiterPermit, work: Work<R>, context: RunContext): R | PromiseLike<R> {
  const outer = nearestHeld(inside.getStore());
  // What has ended is cut out, so that work which starts its own successor, over and over, keeps no chain of them.
  if (outer !== undefined) outer.outer = nearestHeld(outer.outer);
  return inside.run({ permit, outer }, work, context);
}

/**
 * What follows the end of one run, and then of another: two functions made anew for each run would be a twentieth of
 * what a free one costs. There are as many as ever ran at once.
 */
class RunEnd {
  permit: LimiterPermit | undefined = undefined;
  next: RunEnd | undefined = undefined;
  readonly ticket = begins.push(undefined) - 1;

  readonly onResult = (result: unknown): unknown => {
    const permit = this.takePermit();
    if (permit !== undefined) giveBack(permit, 'ok');
    return result;
  };

  readonly onError = (error: unknown): never => {
    const permit = this.takePermit();
    if (permit !== undefined) giveBack(permit, 'ignored');
    throw error;
  };

  takePermit(): LimiterPermit | undefined {
    const { permit } = this;
    // A promise that hides a `then` of its own has called back before.
    if (permit === undefined) return undefined;
    this.permit = undefined;
    this.next = spareEnd;
    spareEnd = this;
    return permit;
  }
}

/**
 * The ends of runs that are granted and have not begun, by their tickets. Of a run that has begun nothing is kept here: one
 * that never ends goes with its limiter when both are dropped.
 */
const begins: (RunEnd | undefined)[] = [];
/** Those that no run has now. */
let spareEnd: RunEnd | undefined;

function endOf(permit: LimiterPermit): RunEnd {
  const end = spareEnd ?? new RunEnd();
  spareEnd = end.next;
  end.permit = permit;
  return end;
}

/** What the promise of a waiting run brings: a number, since V8 asks every object that a promise brings for a `then`. */
export function ticketOf(permit: LimiterPermit): number {
  const end = endOf(permit);
  begins[end.ticket] = end;
  return end.ticket;
}
