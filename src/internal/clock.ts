/**
 * Time. Monotonic always: a step of the wall clock must not end a wait early or late.
 *
 * A clock read costs about as much as a bare `await`, so code on the hot path reads `turnMs()`, which looks at the clock
 * once per turn of the event loop.
 */

/** Milliseconds on the monotonic clock, read now. */
export const nowMs = (): number => performance.now();

// Taken when the module loads: under a test's fake timers the turn of the real event loop still ends.
const afterThisTurn = setImmediate;

let turn = 0;
let wholeTurn = 0;
let turnIsRead = false;
const endTurn = (): void => {
  turnIsRead = false;
};

const readTurn = (): void => {
  turnIsRead = true;
  turn = performance.now();
  wholeTurn = turn | 0;
  afterThisTurn(endTurn);
};

/** Milliseconds on the monotonic clock, as they stood when this turn of the event loop first asked. */
export const turnMs = (): number => {
  if (!turnIsRead) readTurn();
  return turn;
};

/**
 * `turnMs` in whole milliseconds, as a 32-bit integer: V8 keeps those without an object of their own. It wraps around
 * after 24.8 days; differences, taken with `| 0`, survive that.
 */
export const wholeTurnMs = (): number => {
  if (!turnIsRead) readTurn();
  return wholeTurn;
};
