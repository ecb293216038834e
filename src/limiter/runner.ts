import { AsyncLocalStorage } from 'node:async_hooks';
import type { RunContext } from './limiter.js';
import { type LimiterPermit, type PermitIssuer, ReadyPermit, type WaitingPermit } from './permit.js';
import { endOf, PlainPermit, type RunEnd, redeem } from './run-end.js';

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
 * Runs the host's code and gives the permit back when it ends, however it ends. Settles as the code does.
 *
 * Plain `then` calls: an async function would cost a third more.
 */
function start<R>(end: RunEnd, context: RunContext, work: Work<R>): Promise<R> {
  const { turn } = end;
  try {
    const given = work(context);
    const answer = isPlainPromise(given) ? given : promiseOf(given);
    return answer.then(end.onResult as (result: R) => R, end.onError);
  } catch (error) {
    // Unless a promise that hides a `then` of its own has called back before it threw: then the end may serve another.
    if (end.turn === turn) end.finish('ignored');
    return Promise.reject(error);
  }
}

/** Runs under a permit that nobody has to tell from others; `standIn` is what its end gives back. */
export function runPlain<R>(standIn: LimiterPermit, work: Work<R>): Promise<R> {
  const end = endOf(standIn);
  return start(end, { signal: undefined, permit: new PlainPermit(end) }, work);
}

/** Runs the host's code under permits of their own, and knows from where it is asked, if it has to. */
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

  /** Runs under a permit that was free. */
  run<R>(permit: LimiterPermit, work: Work<R>): Promise<R> {
    return this.#startUnlessAborted(endOf(permit), permit, work);
  }

  /** Runs what has waited; `ticket` is what its promise brought. */
  runNext(ticket: number): Promise<unknown> {
    const end = redeem(ticket);
    const permit = end.permit as WaitingPermit;
    const work = permit.work as Work<unknown>;
    permit.work = undefined;
    return this.#startUnlessAborted(end, permit, work);
  }

  /** Runs under a permit, unless the caller gave up between the grant and now. */
  #startUnlessAborted<R>(end: RunEnd, permit: LimiterPermit, work: Work<R>): Promise<R> {
    const signal = permit.extras?.signal;
    if (!signal?.aborted) {
      return start(end, { signal, permit }, this.#detectNested ? insideOf(permit, work) : work);
    }
    end.finish('ignored');
    return Promise.reject(signal.reason);
  }
}

/** The same work, that can be found out to be inside of this permit. */
function insideOf<R>(permit: LimiterPermit, work: Work<R>): Work<R> {
  const outer = nearestHeld(inside.getStore());
  // What has ended is cut out, so that work which starts its own successor, over and over, keeps no chain of them.
  if (outer !== undefined) outer.outer = nearestHeld(outer.outer);
  return (context) => inside.run({ permit, outer }, work, context);
}

/** A permit that any number of runs give back. */
export function standInFor(issuer: PermitIssuer): LimiterPermit {
  const permit = new ReadyPermit(issuer, 1, undefined);
  permit.state = 'shared';
  return permit;
}

/** One with a `then` of its own might call back twice, and an end serves another run by then. */
const isPlainPromise = <R>(given: R | PromiseLike<R>): given is Promise<R> =>
  (given as Promise<R> | undefined)?.constructor === Promise &&
  (given as Promise<R>).then === Promise.prototype.then;

const promiseOf = <R>(given: R | PromiseLike<R>): Promise<R> => new Promise((resolve) => resolve(given));
