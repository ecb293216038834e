import { describe, expect, it } from 'vitest';
import { LifecycleHooks } from '../../src/hooks/lifecycle-hooks.js';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import type { Permit } from '../../src/limiter/limiter.js';
import { endOfTurn } from '../support/promises.js';
import { listenersOf } from '../support/signals.js';

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
  await endOfTurn();
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
      // There are waiters only while something is held.
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

  it('costs acquire no permit and no waiter behind it its turn, at whichever microtask it comes', async () => {
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

  it('costs run no permit, and the run either calls its work or rejects with the reason, never both', async () => {
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

  it('admits the waiter behind it, at whichever microtask it comes', async () => {
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
