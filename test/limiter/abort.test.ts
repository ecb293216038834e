import { getEventListeners } from 'node:events';
import { describe, expect, it } from 'vitest';
import { LifecycleHooks } from '../../src/hooks/lifecycle-hooks.js';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import type { AcquireOptions, Permit } from '../../src/limiter/limiter.js';
import { deferred, turn } from './event-loop.js';

const listenersOf = (signal: AbortSignal) => getEventListeners(signal, 'abort').length;

/** More microtasks than any way through the limiter takes. */
const STEPS = 12;

/** Does what is due at each microtask, checks in between, and ends the turn. */
async function stepThrough(due: (step: number) => void, check: () => void) {
  for (let step = 0; step < STEPS; step++) {
    due(step);
    check();
    await undefined;
    check();
  }
  await turn();
}

const HEARD = { unheard: false, heard: true };

describe.each(Object.entries(HEARD))('An abort around the grant, with hooks %s', (_, heard) => {
  const setUp = () => {
    const hooks = new LifecycleHooks();
    if (heard) for (const event of ['permit:acquired', 'permit:rejected'] as const) hooks.on(event, () => {});
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1, hooks });
    const controller = new AbortController();
    const reason = new Error('the caller left');
    const holder = limiter.tryAcquire() as Permit;
    const check = () => {
      expect(limiter.activeCount).toBeLessThanOrEqual(1);
      // Somebody waits only while somebody holds.
      if (limiter.queuedCount > 0) expect(limiter.activeCount).toBe(1);
    };
    const atRest = () => {
      expect(limiter.stats()).toMatchObject({ active: 0, queued: 0 });
      expect(listenersOf(controller.signal)).toBe(0);
      limiter.tryAcquire()?.release();
      expect(limiter.activeCount).toBe(0);
    };
    return { limiter, controller, reason, holder, check, atRest };
  };

  it('costs acquire no permit and nobody behind it the turn, at whichever microtask it lands', async () => {
    for (let releaseAt = 0; releaseAt < STEPS; releaseAt++) {
      for (let abortAt = 0; abortAt < STEPS; abortAt++) {
        const { limiter, controller, reason, holder, check, atRest } = setUp();
        const order: string[] = [];
        const target = limiter.acquire({ signal: controller.signal }).then(
          (permit) => {
            order.push('target');
            return permit;
          },
          (error: unknown) => error,
        );
        const next = limiter.acquire().then((permit) => {
          order.push('next');
          permit.release();
        });
        await stepThrough((step) => {
          if (step === releaseAt) holder.release();
          if (step === abortAt) controller.abort(reason);
        }, check);
        const outcome = await target;
        const where = `released at ${releaseAt}, aborted at ${abortAt}`;
        if (abortAt < releaseAt) expect(outcome, where).toBe(reason);
        else {
          // Granted first: it is the caller's, who alone can give it back.
          expect(limiter.activeCount, where).toBe(1);
          (outcome as Permit).release();
        }
        await next;
        expect(order, where).toEqual(abortAt < releaseAt ? ['next'] : ['target', 'next']);
        atRest();
      }
    }
  });

  it('costs run no permit, and calls the work or rejects with the reason, never both', async () => {
    for (let releaseAt = 0; releaseAt < STEPS; releaseAt++) {
      for (let abortAt = 0; abortAt < STEPS; abortAt++) {
        const { limiter, controller, reason, holder, check, atRest } = setUp();
        let called = false;
        const target = limiter
          .run(
            async () => {
              called = true;
              await undefined;
              return 'done';
            },
            { signal: controller.signal },
          )
          .catch((error: unknown) => error);
        const next = limiter.run(() => 'next');
        await stepThrough((step) => {
          if (step === releaseAt) holder.release();
          if (step === abortAt) controller.abort(reason);
        }, check);
        const where = `released at ${releaseAt}, aborted at ${abortAt}`;
        expect(await target, where).toBe(called ? 'done' : reason);
        if (abortAt < releaseAt) expect(called, where).toBe(false);
        // A few microtasks lie between the grant and the start.
        if (abortAt > releaseAt + 4) expect(called, where).toBe(true);
        expect(await next, where).toBe('next');
        atRest();
      }
    }
  });

  it('lets whoever stood behind it go on, at whichever microtask it lands', async () => {
    for (let abortAt = 0; abortAt < STEPS; abortAt++) {
      const { limiter, controller, reason, holder, atRest } = setUp();
      limiter.maxConcurrent = 4;
      const heavy = limiter
        .acquire({ weight: 4, signal: controller.signal })
        .catch((error: unknown) => error);
      const light = [limiter.acquire(), limiter.acquire(), limiter.acquire()];
      await stepThrough(
        (step) => {
          if (step === abortAt) controller.abort(reason);
          expect(limiter.activeCount).toBe(step < abortAt ? 1 : 4);
        },
        () => {},
      );
      expect(await heavy).toBe(reason);
      for (const permit of await Promise.all(light)) permit.release();
      holder.release();
      atRest();
    }
  });
});

describe('An aborted request', () => {
  const full = () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
    return { limiter, holder: limiter.tryAcquire() as Permit };
  };

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

  it('leaves the queue in the step of the abort', () => {
    const { limiter } = full();
    const controller = new AbortController();
    limiter.acquire({ signal: controller.signal }).catch(() => {});
    expect(limiter.queuedCount).toBe(1);
    controller.abort();
    expect(limiter.queuedCount).toBe(0);
    expect(limiter.stats().rejected).toBe(1);
  });

  it('never gets a permit, free as it may be, when it comes with a signal that has aborted', async () => {
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

  it('never gets the permit that a listener of its own signal releases ahead of us', async () => {
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

  it('never gets the permit that the abort of a heavier one with the same signal makes room for', async () => {
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

  it('costs its tenant no turn', async () => {
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

  it('keeps a permit that was given before the abort: the signal ends the waiting only', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
    const controller = new AbortController();
    const permit = await limiter.acquire({ signal: controller.signal });
    controller.abort();
    await turn();
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
    await turn();
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

function abortable() {
  const controller = new AbortController();
  return { signal: controller.signal, abort: () => controller.abort(new Error('left')) };
}

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
    await turn();
    process.off('warning', listen);
    expect(warnings).toEqual([]);
  });

  it('carry nothing after the grant, the timeout, the close or the abort of another', async () => {
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

  it('carry nothing at all where no one has to wait', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
    const { signal } = abortable();
    const { promise, resolve } = deferred();
    const running = limiter.run(() => promise, { signal });
    expect(listenersOf(signal)).toBe(0);
    resolve();
    await running;
    expect(listenersOf(signal)).toBe(0);
  });

  it('keep their listener while any waiter of theirs is left', async () => {
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
