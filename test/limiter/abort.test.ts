import { describe, expect, it } from 'vitest';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import type { AcquireOptions, Permit } from '../../src/limiter/limiter.js';
import { deferred, endOfTurn } from '../support/promises.js';
import { listenersOf } from '../support/signals.js';

function abortable() {
  const controller = new AbortController();
  return { signal: controller.signal, abort: () => controller.abort(new Error('left')) };
}

describe('An aborted request', () => {
  const full = () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
    return { limiter, holder: limiter.tryAcquire() as Permit };
  };

  it('is noticed on a combined signal too, of which nothing is kept afterwards', async () => {
    const { limiter, holder } = full();
    const [user, deadline] = [new AbortController(), new AbortController()];
    const both = AbortSignal.any([user.signal, deadline.signal]);
    const waiting = Array.from({ length: 100 }, () => limiter.acquire({ signal: both }));
    expect(listenersOf(both)).toBe(1);
    deadline.abort(new Error('no time left'));
    for (const one of waiting) await expect(one).rejects.toThrow('no time left');
    expect([listenersOf(both), limiter.queuedCount]).toEqual([0, 0]);
    const again = AbortSignal.any([user.signal]);
    const granted = limiter.run(() => 'fine', { signal: again });
    holder.release();
    expect(await granted).toBe('fine');
    expect(listenersOf(again)).toBe(0);
  });

  it('rejects with the reason itself, whatever it is', async () => {
    const { limiter } = full();
    for (const reason of [new Error('mine'), 'a string', 0, null]) {
      const controller = new AbortController();
      const waiting = limiter.acquire({ signal: controller.signal });
      controller.abort(reason);
      await expect(waiting).rejects.toBe(reason);
    }
    const controller = new AbortController();
    const waiting = limiter.run(() => {}, { signal: controller.signal });
    controller.abort();
    await expect(waiting).rejects.toMatchObject({ name: 'AbortError' });
  });

  it('leaves the queue synchronously with the abort', () => {
    const { limiter } = full();
    const controller = new AbortController();
    limiter.acquire({ signal: controller.signal }).catch(() => {});
    expect(limiter.queuedCount).toBe(1);
    controller.abort();
    expect(limiter.queuedCount).toBe(0);
    expect(limiter.stats().rejected).toBe(1);
  });

  it('never gets a permit, even a free one, when its signal has aborted before', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
    const signal = AbortSignal.abort(new Error('too late'));
    let called = false;
    await expect(limiter.acquire({ signal })).rejects.toThrow('too late');
    await expect(
      limiter.run(
        () => {
          called = true;
        },
        { signal },
      ),
    ).rejects.toThrow('too late');
    expect(called).toBe(false);
    expect(limiter.stats()).toMatchObject({ active: 0, queued: 0, acquired: 0, rejected: 2 });
    expect(listenersOf(signal)).toBe(0);
  });

  it('never gets a permit that another listener of its signal releases', async () => {
    for (const withRun of [false, true]) {
      const { limiter, holder } = full();
      const controller = new AbortController();
      controller.signal.addEventListener('abort', () => holder.release());
      const options = { signal: controller.signal };
      const aborted = withRun ? limiter.run(() => 'called', options) : limiter.acquire(options);
      const next = limiter.acquire();
      controller.abort(new Error('left'));
      expect(limiter.activeCount).toBe(1);
      expect(limiter.queuedCount).toBe(0);
      await expect(aborted).rejects.toThrow('left');
      (await next).release();
      expect(limiter.stats()).toMatchObject({ active: 0, acquired: 2, rejected: 1 });
    }
  });

  it('never gets a permit that the abort of a heavier request with the same signal makes room for', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 2 });
    const holder = limiter.tryAcquire() as Permit;
    const { signal, abort } = abortable();
    const all = [2, 1, 1].map((weight) =>
      limiter.acquire({ weight, signal }).catch((error: Error) => error.message),
    );
    abort();
    expect(limiter.stats()).toMatchObject({ active: 1, queued: 0 });
    expect(await Promise.all(all)).toEqual(['left', 'left', 'left']);
    holder.release();
    expect(limiter.activeCount).toBe(0);
  });

  it('does not cost its tenant a turn', async () => {
    const { limiter, holder } = full();
    const order: string[] = [];
    const ask = (name: string, options: AcquireOptions) =>
      limiter.acquire(options).then(
        (permit) => {
          order.push(name);
          permit.release();
        },
        () => {},
      );
    const { signal, abort } = abortable();
    signal.addEventListener('abort', () => holder.release());
    const all = [
      ask('a1', { tenant: 'a', signal }),
      ask('b1', { tenant: 'b' }),
      ask('a2', { tenant: 'a' }),
      ask('b2', { tenant: 'b' }),
    ];
    abort();
    await Promise.all(all);
    expect(order).toEqual(['a2', 'b1', 'b2']);
  });

  it('keeps a permit that was granted before the abort: the signal ends only the wait', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
    const controller = new AbortController();
    const permit = await limiter.acquire({ signal: controller.signal });
    controller.abort();
    await endOfTurn();
    expect(limiter.activeCount).toBe(1);
    permit.release();
  });

  it('settles whether it runs or waits when one signal ends both', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
    const { signal, abort } = abortable();
    const work = ({ signal }: { signal?: AbortSignal }) =>
      new Promise((_, reject) =>
        signal?.addEventListener('abort', () => reject(signal.reason), { once: true }),
      );
    const all = Promise.allSettled([
      limiter.run(work, { signal }),
      limiter.run(work, { signal }),
      limiter.run(work, { signal }),
    ]);
    await endOfTurn();
    abort();
    expect((await all).map(({ status }) => status)).toEqual(['rejected', 'rejected', 'rejected']);
    expect(limiter.stats()).toMatchObject({ active: 0, queued: 0 });
    expect(listenersOf(signal)).toBe(0);
  });

  it('is not called when the abort comes between the grant and the start', async () => {
    const { limiter, holder } = full();
    const { signal, abort } = abortable();
    let called = false;
    const result = limiter.run(
      () => {
        called = true;
      },
      { signal },
    );
    holder.release();
    abort();
    await expect(result).rejects.toThrow('left');
    expect(called).toBe(false);
    expect(limiter.activeCount).toBe(0);
  });
});

describe('The signals of waiters', () => {
  it('carry one listener however many waiters share them, and no warning', async () => {
    const warnings: Error[] = [];
    const listen = (warning: Error) => warnings.push(warning);
    process.on('warning', listen);
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
    const holder = limiter.tryAcquire() as Permit;
    const { signal, abort } = abortable();
    const all = Array.from({ length: 10_000 }, (_, i) =>
      (i % 2 === 0 ? limiter.acquire({ signal }) : limiter.run(() => {}, { signal })).catch(() => 'left'),
    );
    expect(listenersOf(signal)).toBe(1);
    expect(limiter.queuedCount).toBe(10_000);
    abort();
    expect(limiter.queuedCount).toBe(0);
    expect(new Set(await Promise.all(all))).toEqual(new Set(['left']));
    expect(listenersOf(signal)).toBe(0);
    holder.release();
    expect(limiter.activeCount).toBe(0);
    await endOfTurn();
    process.off('warning', listen);
    expect(warnings).toEqual([]);
  });

  it('carry no listener after the grant, the timeout, the close or the abort of another', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
    const holder = limiter.tryAcquire() as Permit;
    const granted = abortable();
    const other = abortable();
    const closed = abortable();
    const first = limiter.acquire({ signal: granted.signal });
    const second = limiter.acquire({ signal: other.signal }).catch(() => {});
    const third = limiter.acquire({ signal: closed.signal }).catch(() => {});
    expect([granted, other, closed].map(({ signal }) => listenersOf(signal))).toEqual([1, 1, 1]);
    holder.release();
    expect(listenersOf(granted.signal)).toBe(0);
    other.abort();
    expect([other, closed].map(({ signal }) => listenersOf(signal))).toEqual([0, 1]);
    const end = limiter.close();
    expect(listenersOf(closed.signal)).toBe(0);
    (await first).release();
    await Promise.all([second, third, end]);
  });

  it('carry no listener where the permit is free', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
    const { signal } = abortable();
    const { promise, resolve } = deferred();
    const running = limiter.run(() => promise, { signal });
    expect(listenersOf(signal)).toBe(0);
    resolve();
    await running;
    expect(listenersOf(signal)).toBe(0);
  });

  it('keep their listener while any of their waiters is left', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
    const holder = limiter.tryAcquire() as Permit;
    const { signal, abort } = abortable();
    const first = limiter.acquire({ signal });
    const second = limiter.acquire({ signal });
    holder.release();
    expect(listenersOf(signal)).toBe(1);
    abort();
    await expect(second).rejects.toThrow('left');
    (await first).release();
    expect(limiter.activeCount).toBe(0);
  });
});
