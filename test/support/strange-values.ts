import fc from 'fast-check';

const thrower = (): never => {
  throw new Error('unreadable');
};
const traps: ProxyHandler<object> = Object.fromEntries(
  (
    ['get', 'has', 'ownKeys', 'getPrototypeOf', 'getOwnPropertyDescriptor', 'set', 'defineProperty'] as const
  ).map((trap) => [trap, thrower]),
);
const unreadable = (...keys: string[]): object => {
  const value = {};
  for (const key of keys) Object.defineProperty(value, key, { get: thrower, enumerable: true });
  return value;
};
const revoked = (): object => {
  const { proxy, revoke } = Proxy.revocable({}, {});
  revoke();
  return proxy;
};
const cyclic = (): object => {
  const error = new Error('cyclic') as Error & { self?: unknown };
  error.cause = error;
  error.self = [error];
  return error;
};

/** Values that host code may throw, and that are hard or impossible to read: made anew for each run. */
export const STRANGE_VALUES: Readonly<Record<string, () => unknown>> = {
  'a revoked proxy': revoked,
  'a proxy whose traps throw': () => new Proxy({}, traps),
  'an object with throwing getters': () => unreadable('message', 'name', 'code', 'stack', 'cause', 'then'),
  'an error with a throwing message': () =>
    Object.defineProperty(new Error('x'), 'message', { get: thrower }),
  'an error with an unreadable cause': () => new Error('x', { cause: revoked() }),
  'an error with an object as its message': () =>
    Object.assign(new Error('x'), { message: Object.create(null), code: Symbol('code') }),
  'a cyclic error': cyclic,
  'an aggregate of itself': () => {
    const error = new AggregateError([]);
    error.errors.push(error);
    return error;
  },
  'a symbol': () => Symbol('reason'),
  undefined: () => undefined,
  null: () => null,
  NaN: () => Number.NaN,
  'a bigint': () => 10n ** 400n,
  'a string of a megabyte': () => 'x'.repeat(2 ** 20),
  'an error with a message of a megabyte': () => new Error('x'.repeat(2 ** 20)),
  'an array of a million': () => new Array(1_000_000).fill(0),
  'an object without a prototype': () => Object.create(null),
  'a function': () => thrower,
  'a frozen error': () => Object.freeze(new Error('frozen')),
};

/** The name of one of them. */
export const strangeValue = fc.constantFrom(...Object.keys(STRANGE_VALUES));
