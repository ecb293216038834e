import assert from 'node:assert/strict';
import { AsyncLocalStorage } from 'node:async_hooks';
import { getEventListeners } from 'node:events';
import { withDeadline } from '../internal/abort.js';
import { callable } from '../internal/validate.js';
import type { AcquireOptions, Limiter, Permit } from '../limiter/limiter.js';

/** What a limiter under test is made with. */
export interface ConformanceLimiterOptions {
  /** The limit. */
  readonly maxConcurrent: number;
  /** Waiters that may queue. @default unlimited */
  readonly maxQueue?: number;
  /** Milliseconds that a request waits at most. @default unlimited */
  readonly acquireTimeoutMs?: number;
}

/** One thing that a `Limiter` must do. */
export interface ConformanceCase {
  /** A fact in the present tense. */
  readonly name: string;
  /** Fulfills if the limiter does it; rejects with an `AssertionError`, or after `CASE_TIMEOUT_MS`. */
  run(): Promise<void>;
}

/** How long a case may take. */
const CASE_TIMEOUT_MS = 30_000;
/** How long a case waits for something that must not happen. */
const QUIET_MS = 50;

/** Tries one thing on a limiter that it makes. */
type Check = (make: (options: ConformanceLimiterOptions) => Promise<Limiter>) => Promise<void>;

/**
 * What every `Limiter` must do: `ConcurrencyLimiter`, the limiter of a fleet, and your own. The cases
 * use no test runner and real timers, and each makes a limiter of its own, which it closes.
 *
 * `create` returns an empty limiter with these options, which shares its limit with no earlier one.
 *
 * @throws {TypeError} if `create` is not a function
 *
 * @example
 * for (const { name, run } of limiterConformance((options) => new ConcurrencyLimiter(options))) test(name, run);
 */
export function limiterConformance(
  create: (options: ConformanceLimiterOptions) => Limiter | Promise<Limiter>,
): readonly ConformanceCase[] {
  callable('create', create);
  return Object.entries(CASES).map(([name, check]) => ({
    name,
    run: () => {
      const made: Limiter[] = [];
      const make = async (options: ConformanceLimiterOptions): Promise<Limiter> => {
        made.push(await create(options));
        return made.at(-1)!;
      };
      const work = async (): Promise<void> => {
        await check(make);
        for (const limiter of made) await limiter.close({ timeoutMs: CASE_TIMEOUT_MS });
      };
      return withDeadline(
        work(),
        CASE_TIMEOUT_MS,
        (ms) => new assert.AssertionError({ message: `"${name}" took longer than ${ms} ms` }),
      );
    },
  }));
}

const CASES: Readonly<Record<string, Check>> = {
  'grants at most `maxConcurrent` permits at once, and all of them under load': async (make) => {
    const limiter = await make({ maxConcurrent: 3 });
    let active = 0;
    let peak = 0;
    const work = async (): Promise<void> => {
      const permit = await limiter.acquire();
      peak = Math.max(peak, ++active);
      await sleep(1);
      active--;
      permit.release();
    };
    await Promise.all(Array.from({ length: 60 }, work));
    assert.equal(peak, 3);
  },

  'grants in the order of the calls': async (make) => {
    const limiter = await make({ maxConcurrent: 1 });
    const names = Array.from({ length: 20 }, (_, i) => `${i}`);
    const order = await orderOf(
      limiter,
      names.map((name) => [name, {}]),
    );
    assert.deepEqual(order, names);
  },

  'grants a higher priority first, and equals in the order of the calls': async (make) => {
    const limiter = await make({ maxConcurrent: 1 });
    const order = await orderOf(limiter, [
      ['low', { priority: -1 }],
      ['first', {}],
      ['second', { priority: 0 }],
      ['high', { priority: 5 }],
    ]);
    assert.deepEqual(order, ['high', 'first', 'second', 'low']);
  },

  'lets a tenant with one request wait for at most two grants of a tenant with many': async (make) => {
    const limiter = await make({ maxConcurrent: 1 });
    const many = Array.from({ length: 20 }, (_, i) => [`many ${i}`, { tenant: 'many' }] as const);
    const order = await orderOf(limiter, [...many, ['few', { tenant: 'few' }]]);
    assert.ok(order.indexOf('few') <= 2, `granted at place ${order.indexOf('few') + 1}`);
  },

  'counts a permit by its weight': async (make) => {
    const limiter = await make({ maxConcurrent: 4 });
    const heavy = await limiter.acquire({ weight: 3 });
    const light = await limiter.acquire();
    assert.equal(heavy.weight, 3);
    assert.equal(light.weight, 1);
    assert.equal(limiter.activeCount, 4);
    await rejects(limiter.acquire({ timeoutMs: QUIET_MS }), 'ERR_ACQUIRE_TIMEOUT');
    heavy.release();
    const others = await Promise.all([limiter.acquire({ weight: 2 }), limiter.acquire()]);
    for (const permit of [light, ...others]) permit.release();
  },

  'lets no light request pass a heavy one of its priority': async (make) => {
    const limiter = await make({ maxConcurrent: 2 });
    const first = await limiter.acquire();
    const order: string[] = [];
    const heavy = limiter.acquire({ weight: 2 }).then((permit) => take(order, 'heavy', permit));
    const light = limiter.acquire().then((permit) => take(order, 'light', permit));
    await sleep(QUIET_MS);
    assert.deepEqual(order, []);
    first.release();
    await Promise.all([heavy, light]);
    assert.deepEqual(order, ['heavy', 'light']);
  },

  'rejects a weight that can never be granted': async (make) => {
    const limiter = await make({ maxConcurrent: 2 });
    await assert.rejects(limiter.acquire({ weight: 3 }), RangeError);
  },

  'rejects wrong options, and never throws them': async (make) => {
    const limiter = await make({ maxConcurrent: 1 });
    const wrong: readonly [object, typeof TypeError | typeof RangeError][] = [
      [{ weight: 0 }, RangeError],
      [{ weight: 1.5 }, RangeError],
      [{ priority: 0.5 }, RangeError],
      [{ timeoutMs: -1 }, RangeError],
      [{ timeoutMs: '5' }, TypeError],
      [{ signal: {} }, TypeError],
      [{ tenant: '' }, TypeError],
      [{ unknown: 1 }, TypeError],
    ];
    for (const [options, type] of wrong)
      await assert.rejects(limiter.acquire(options as AcquireOptions), type, JSON.stringify(options));
    await free(limiter, 1);
  },

  'rejects with the reason of a signal that has aborted, and takes nothing': async (make) => {
    const limiter = await make({ maxConcurrent: 1 });
    const reason = new Error('left');
    await assert.rejects(limiter.acquire({ signal: AbortSignal.abort(reason) }), (error) => error === reason);
    await free(limiter, 1);
  },

  'rejects a waiter with the reason of its signal when it aborts, and grants those behind it': async (
    make,
  ) => {
    const limiter = await make({ maxConcurrent: 1 });
    const held = await limiter.acquire();
    const controller = new AbortController();
    const reason = new Error('left');
    const leaving = limiter.acquire({ signal: controller.signal });
    const behind = limiter.acquire();
    await sleep(QUIET_MS);
    controller.abort(reason);
    await assert.rejects(leaving, (error) => error === reason);
    held.release();
    (await behind).release();
  },

  'does not take a permit back when the signal of its request aborts': async (make) => {
    const limiter = await make({ maxConcurrent: 1 });
    const controller = new AbortController();
    const permit = await limiter.acquire({ signal: controller.signal });
    controller.abort();
    await rejects(limiter.acquire({ timeoutMs: QUIET_MS }), 'ERR_ACQUIRE_TIMEOUT');
    assert.equal(permit.signal?.aborted ?? false, false);
    permit.release();
  },

  'leaves no listener on a signal': async (make) => {
    const limiter = await make({ maxConcurrent: 1 });
    const { signal } = new AbortController();
    const held = await limiter.acquire({ signal });
    const queued = limiter.acquire({ signal });
    await rejects(limiter.acquire({ signal, timeoutMs: QUIET_MS }), 'ERR_ACQUIRE_TIMEOUT');
    held.release();
    (await queued).release();
    assert.deepEqual(getEventListeners(signal, 'abort'), []);
  },

  'rejects a waiter at its own timeout, with the figures of the queue': async (make) => {
    const limiter = await make({ maxConcurrent: 1 });
    const held = await limiter.acquire();
    const error = await rejects(limiter.acquire({ timeoutMs: QUIET_MS }), 'ERR_ACQUIRE_TIMEOUT');
    const { source, waitMs, active, size } = error as unknown as Record<string, unknown>;
    assert.equal(source, limiter.name);
    assert.equal(active, 1);
    assert.equal(size, 1);
    assert.ok((waitMs as number) >= QUIET_MS - 5, `waited ${waitMs} ms`);
    held.release();
  },

  'rejects a waiter at the timeout of the limiter, unless it has its own': async (make) => {
    const limiter = await make({ maxConcurrent: 1, acquireTimeoutMs: QUIET_MS });
    const held = await limiter.acquire();
    const patient = limiter.acquire({ timeoutMs: CASE_TIMEOUT_MS });
    await rejects(limiter.acquire(), 'ERR_ACQUIRE_TIMEOUT');
    held.release();
    (await patient).release();
  },

  'does not wait at all with a timeout of 0': async (make) => {
    const limiter = await make({ maxConcurrent: 1 });
    const held = await limiter.acquire();
    await rejects(limiter.acquire({ timeoutMs: 0 }), 'ERR_ACQUIRE_TIMEOUT');
    held.release();
  },

  'rejects the next waiter when the queue is full, with a time to retry after': async (make) => {
    const limiter = await make({ maxConcurrent: 1, maxQueue: 1 });
    const held = await limiter.acquire();
    const queued = limiter.acquire();
    await sleep(QUIET_MS);
    const error = await rejects(limiter.acquire(), 'ERR_QUEUE_FULL');
    assert.equal(typeof error.retryAfterMs, 'number');
    held.release();
    (await queued).release();
  },

  'counts a permit that is released twice once': async (make) => {
    const limiter = await make({ maxConcurrent: 2 });
    const first = await limiter.acquire();
    const second = await limiter.acquire();
    first.release();
    first.release('dropped');
    const third = await limiter.acquire();
    await rejects(limiter.acquire({ timeoutMs: QUIET_MS }), 'ERR_ACQUIRE_TIMEOUT');
    second.release('ignored');
    third.release('dropped');
    await free(limiter, 2);
  },

  'releases a permit that is disposed of': async (make) => {
    const limiter = await make({ maxConcurrent: 1 });
    (await limiter.acquire())[Symbol.dispose]();
    await free(limiter, 1);
  },

  'counts what is held and what waits': async (make) => {
    const limiter = await make({ maxConcurrent: 2 });
    assert.equal(limiter.maxConcurrent, 2);
    const held = await Promise.all([limiter.acquire(), limiter.acquire()]);
    const queued = limiter.acquire();
    await sleep(QUIET_MS);
    assert.equal(limiter.activeCount, 2);
    assert.equal(limiter.queuedCount, 1);
    const { maxConcurrent, active, queued: waiters, acquired, paused, closed } = limiter.stats();
    assert.deepEqual(
      { maxConcurrent, active, waiters, acquired, paused, closed },
      { maxConcurrent: 2, active: 2, waiters: 1, acquired: 2, paused: false, closed: false },
    );
    for (const permit of held) permit.release();
    const last = await queued;
    assert.ok(last.waitMs >= 0);
    last.release();
    await free(limiter, 2);
    assert.equal(limiter.queuedCount, 0);
  },

  'serves the others when many waiters abort at once': async (make) => {
    const limiter = await make({ maxConcurrent: 1 });
    const held = await limiter.acquire();
    const controller = new AbortController();
    const leaving = Array.from({ length: 1_000 }, () => limiter.acquire({ signal: controller.signal }));
    const staying = limiter.acquire();
    await sleep(QUIET_MS);
    controller.abort();
    const ends = await Promise.allSettled(leaving);
    assert.ok(ends.every(({ status }) => status === 'rejected'));
    held.release();
    (await staying).release();
  },

  'keeps the AsyncLocalStorage context of each caller': async (make) => {
    const limiter = await make({ maxConcurrent: 1 });
    const storage = new AsyncLocalStorage<number>();
    const callers = Array.from({ length: 10 }, (_, i) => i);
    const acquire = async (): Promise<number | undefined> => {
      const permit = await limiter.acquire();
      const caller = storage.getStore();
      permit.release();
      return caller;
    };
    const seen = await Promise.all(callers.map((caller) => storage.run(caller, acquire)));
    assert.deepEqual(seen, callers);
  },

  'rejects waiters and newcomers when it closes, and closes when the last permit is back': async (make) => {
    const limiter = await make({ maxConcurrent: 1 });
    const held = await limiter.acquire();
    const queued = limiter.acquire();
    let isClosed = false;
    const waiter = rejects(queued, 'ERR_LIMITER_CLOSED');
    const closing = limiter.close().then(() => {
      isClosed = true;
    });
    await waiter;
    await rejects(limiter.acquire(), 'ERR_LIMITER_CLOSED');
    await sleep(QUIET_MS);
    assert.equal(isClosed, false);
    assert.equal(limiter.stats().closed, true);
    held.release();
    await closing;
  },

  'serves its waiters first when it closes with `drain`': async (make) => {
    const limiter = await make({ maxConcurrent: 1 });
    const held = await limiter.acquire();
    const queued = limiter.acquire();
    const closing = limiter.close({ drain: true });
    await rejects(limiter.acquire(), 'ERR_LIMITER_CLOSED');
    held.release();
    (await queued).release();
    await closing;
  },

  'gives up closing at its timeout, and says what is held': async (make) => {
    const limiter = await make({ maxConcurrent: 2 });
    const held = await limiter.acquire({ weight: 2 });
    const error = await rejects(limiter.close({ timeoutMs: QUIET_MS }), 'ERR_DRAIN_TIMEOUT');
    assert.equal((error as unknown as { held: unknown }).held, 2);
    held.release();
  },
};

const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

function take(order: string[], name: string, permit: Permit): void {
  order.push(name);
  permit.release();
}

/** The order in which requests are granted that wait for the only permit. */
async function orderOf(
  limiter: Limiter,
  requests: readonly (readonly [name: string, options: AcquireOptions])[],
): Promise<string[]> {
  const held = await limiter.acquire();
  const order: string[] = [];
  const ends = requests.map(async ([name, options]) => take(order, name, await limiter.acquire(options)));
  await sleep(QUIET_MS);
  assert.deepEqual(order, []);
  held.release();
  await Promise.all(ends);
  return order;
}

/** Asserts that so many permits can be held, and no more. */
async function free(limiter: Limiter, count: number): Promise<void> {
  const permits = await Promise.all(Array.from({ length: count }, () => limiter.acquire()));
  await rejects(limiter.acquire({ timeoutMs: QUIET_MS }), 'ERR_ACQUIRE_TIMEOUT');
  for (const permit of permits) permit.release();
}

/** Asserts that a promise rejects with an error of this code. */
async function rejects(
  promise: Promise<unknown>,
  code: string,
): Promise<Error & { readonly retryAfterMs?: unknown }> {
  const error = await promise.then(
    () => assert.fail(`Expected a rejection with ${code}`),
    (reason: unknown) => reason,
  );
  assert.equal((error as { readonly code?: unknown }).code, code);
  return error as Error;
}
