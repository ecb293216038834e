/**
 * The monotonic clock: a step of the wall clock must not end a wait early or late.
 *
 * A clock read costs about as much as a bare `await`, so code on the hot path calls `turnMs()`, which reads the clock
 * once per turn of the event loop.
 */

/** Milliseconds on the monotonic clock, read now. */
export const nowMs = (): number => performance.now();

/**
 * A clock of the host. It never goes back: when it is set back, throws or returns anything but a finite number, it stands
 * still, and goes on from there.
 */
export function guardedClock(now: () => number): () => number {
  let last: number | undefined;
  let setBackMs = 0;
  return () => {
    try {
      const read = now();
      if (Number.isFinite(read)) {
        if (last !== undefined && read < last) setBackMs += last - read;
        last = read;
      }
    } catch {
      // A failing clock makes waits look shorter; it must not cost a slot or a lease.
    }
    return (last ?? 0) + setBackMs;
  };
}

/** The clock that a host passes, guarded, or else `nowMs`. */
export const clockOf = (now: (() => number) | undefined): (() => number) =>
  now === undefined ? nowMs : guardedClock(now);

// Taken when the module loads: under fake timers, which may stand still, the turn of the real event loop still ends.
export const afterThisTurn = /* @__PURE__ */ (() => setImmediate)();

let turn = 0;
let wholeTurn = 0;
let turnIsRead = false;
/** Waiters settled in this turn, and those that are settled in the next ones. */
let settled = 0;
const unsettled: (() => void)[] = [];
/** How many of these are settled already. */
let taken = 0;

const readTurn = (): void => {
  turnIsRead = true;
  turn = performance.now();
  wholeTurn = turn | 0;
  // For all that ends with the turn: an immediate costs as much as the rest of a grant.
  afterThisTurn(endTurn);
};

/** Milliseconds on the monotonic clock, as read first in this turn of the event loop. */
export const turnMs = (): number => {
  if (!turnIsRead) readTurn();
  return turn;
};

/**
 * `turnMs` in whole milliseconds, as a 32-bit integer: V8 stores those without a heap object. It wraps around
 * after 24.8 days; differences, taken with `| 0`, survive that.
 */
export const wholeTurnMs = (): number => {
  if (!turnIsRead) readTurn();
  return wholeTurn;
};

const endTurn = (): void => {
  turnIsRead = false;
  const due = unsettled.slice(taken, taken + PER_TURN);
  settled = due.length;
  taken += settled;
  // Not each time: a splice moves all that follow.
  if (taken > unsettled.length / 2) taken -= unsettled.splice(0, taken).length;
  if (settled > 0) turnMs();
  for (const settle of due) settle();
};

/**
 * How many waiters or calls one operation ends or starts in one turn of the event loop. What follows for one of them, in
 * this library and in the host's code, takes up to 0.1 ms before V8 has compiled it.
 */
export const PER_TURN = 50;

/**
 * Calls `act` for each item, a batch per turn of the event loop, so that ending 10,000 waiters does not block other code.
 * The first batch is synchronous; returns `undefined` if it was the only one.
 */
export function inBatches<T>(items: readonly T[], act: (item: T) => void): Promise<void> | undefined {
  let at = 0;
  const step = (): boolean => {
    for (const end = Math.min(at + PER_TURN, items.length); at < end; at++) act(items[at] as T);
    return at < items.length;
  };
  if (!step()) return undefined;
  return new Promise((resolve) => {
    const next = (): void => {
      if (step()) afterThisTurn(next);
      else resolve();
    };
    afterThisTurn(next);
  });
}

const isOfThisTurn = (): boolean => {
  if (settled === PER_TURN || unsettled.length > 0) return false;
  settled++;
  // So that the turn ends.
  turnMs();
  return true;
};

/**
 * Settles a waiter that has left its queue. What follows in the host's code and in ours runs in the same step of the event
 * loop; so beyond the first of a turn, waiters are settled in the next turns, in order. `settle` must not throw.
 */
export function settleInTurn(settle: () => void): void {
  if (isOfThisTurn()) settle();
  else unsettled.push(settle);
}

/**
 * For what goes on after a wait. Where work ends without leaving the step, as many as wait go on in it, one after another:
 * beyond the first of a turn, this fulfills in the next turns, in order. `undefined` for the first.
 */
export function continueInTurn(): Promise<void> | undefined {
  return isOfThisTurn() ? undefined : new Promise((resolve) => unsettled.push(resolve));
}
