/** Promises that a test settles, follows or waits for. Independent of Vitest and of fake timers. */

// Taken before any test replaces the timers.
const { setImmediate: afterThisTurn, setTimeout: afterRealMs } = globalThis;

/** A promise to settle by hand. */
export interface Deferred<T> {
  readonly promise: Promise<T>;
  resolve(value: T | PromiseLike<T>): void;
  reject(error: unknown): void;
}

export function deferred<T = void>(): Deferred<T> {
  let resolve!: (value: T | PromiseLike<T>) => void;
  let reject!: (error: unknown) => void;
  const promise = new Promise<T>((yes, no) => {
    resolve = yes;
    reject = no;
  });
  return { promise, resolve, reject };
}

/**
 * Ends the present turn of the real event loop, all its microtasks included. Needed after a change between real and fake
 * timers: code that has read the clock in this turn does not read it again.
 */
export const endOfTurn = (): Promise<void> => new Promise((resolve) => afterThisTurn(resolve));

/** Lets so many microtasks run, one after another. */
export async function microtasks(count = 30): Promise<void> {
  for (let i = 0; i < count; i++) await undefined;
}

/** Waits on the timer that is installed at the moment, real or fake. */
export const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** Waits, in real time, for what another side of a connection will do: polls often, and is patient on a busy machine. */
export async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  for (let attempt = 0; !(await condition()); attempt++) {
    if (attempt === 7_500) throw new Error(`Never became true: ${condition}`);
    await new Promise((resolve) => afterRealMs(resolve, 2));
  }
}

/** The state of a promise, now. */
export type PromiseState =
  | { is: 'pending' }
  | { is: 'fulfilled'; value: unknown }
  | { is: 'rejected'; reason: unknown };

/** Follows a promise, without leaving its rejection unhandled. */
export function follow(promise: Promise<unknown>): { now: PromiseState; afterMs: number | undefined } {
  const from = performance.now();
  const followed: { now: PromiseState; afterMs: number | undefined } = {
    now: { is: 'pending' },
    afterMs: undefined,
  };
  const settle = (now: PromiseState) => {
    followed.now = now;
    followed.afterMs = performance.now() - from;
  };
  promise.then(
    (value) => settle({ is: 'fulfilled', value }),
    (reason: unknown) => settle({ is: 'rejected', reason }),
  );
  return followed;
}

/** The outcome of a promise at the end of this turn. */
export async function outcome<V>(
  promise: Promise<V>,
): Promise<'pending' | { value: V } | { error: unknown }> {
  let settled: 'pending' | { value: V } | { error: unknown } = 'pending';
  promise.then(
    (value) => {
      settled = { value };
    },
    (error: unknown) => {
      settled = { error };
    },
  );
  await endOfTurn();
  return settled;
}
