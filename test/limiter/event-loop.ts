// Taken before any test replaces the timers.
const afterThisTurn = setImmediate;

/**
 * Ends the present turn of the real event loop, all its microtasks included. Needed after a change between real and fake
 * timers: what has read the clock in this turn does not look at it again.
 */
export const turn = (): Promise<void> => new Promise((resolve) => afterThisTurn(resolve));

/** A promise and what settles it. */
export function deferred<T = void>() {
  let resolve!: (value: T) => void;
  let reject!: (reason: unknown) => void;
  const promise = new Promise<T>((yes, no) => {
    resolve = yes;
    reject = no;
  });
  return { promise, resolve, reject };
}
