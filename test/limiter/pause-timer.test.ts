import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { describe, expect, it, vi } from 'vitest';
import { AdaptiveLimit } from '../../src/limiter/adaptive-limit.js';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import type { Permit } from '../../src/limiter/limiter.js';
import { onFakeTimers } from '../support/fake-timers.js';

const HOUR = 3_600_000;

describe('The timer that ends a pause', () => {
  onFakeTimers();

  /** A limiter of one, with what will end its pause. */
  function setUp() {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
    const timer = setTimeout(() => limiter.resume(), HOUR);
    const controller = new AbortController();
    const wait = (options: { timeoutMs?: number; signal?: AbortSignal } = {}) =>
      limiter.acquire(options).catch(() => 'left');
    return { limiter, timer, controller, wait };
  }

  it('keeps the process alive only while there are waiters', async () => {
    const { limiter, timer, controller, wait } = setUp();
    expect(timer.hasRef()).toBe(true);
    limiter.pause(timer);
    expect(timer.hasRef()).toBe(false);
    const first = wait({ signal: controller.signal });
    expect(timer.hasRef()).toBe(true);
    const second = wait({ timeoutMs: 50 });
    controller.abort();
    expect(timer.hasRef()).toBe(true);
    await vi.advanceTimersByTimeAsync(50);
    expect(timer.hasRef()).toBe(false);
    expect([await first, await second]).toEqual(['left', 'left']);
    const third = wait({ timeoutMs: 50 });
    expect(timer.hasRef()).toBe(true);
    await vi.advanceTimersByTimeAsync(50);
    expect(timer.hasRef()).toBe(false);
    expect(await third).toBe('left');
  });

  it('keeps it alive for those who waited before the pause, even if it was unreferenced', async () => {
    const { limiter, timer, controller, wait } = setUp();
    const holder = limiter.tryAcquire();
    const waiting = wait({ signal: controller.signal });
    limiter.pause(timer.unref());
    expect(timer.hasRef()).toBe(true);
    holder?.release();
    expect(timer.hasRef()).toBe(true);
    controller.abort();
    expect(timer.hasRef()).toBe(false);
    await waiting;
  });

  it('keeps it alive for a request without options that comes while the limit is reached', async () => {
    const { limiter, timer } = setUp();
    const holder = limiter.tryAcquire();
    limiter.pause(timer);
    const waiting = limiter.acquire();
    expect(timer.hasRef()).toBe(true);
    holder?.release();
    limiter.resume();
    expect((await waiting).weight).toBe(1);
  });

  it('no longer keeps it alive when the waiters are rejected', async () => {
    const { limiter, timer, wait } = setUp();
    limiter.pause(timer);
    const waiting = wait();
    await limiter.close();
    expect(await waiting).toBe('left');
    expect(timer.hasRef()).toBe(false);
  });

  it('no longer keeps it alive when the pause ends before its time', async () => {
    for (const end of ['resume', 'drain'] as const) {
      const { limiter, timer, wait } = setUp();
      limiter.pause(timer);
      const waiting = wait();
      expect(timer.hasRef()).toBe(true);
      const closed = end === 'drain' ? limiter.close({ drain: true }) : limiter.resume();
      ((await waiting) as Permit).release();
      await closed;
      expect(timer.hasRef()).toBe(false);
    }
  });

  it('is not touched by a limiter that is paused without it, or has resumed', async () => {
    const { limiter, timer, wait } = setUp();
    limiter.pause(timer);
    limiter.resume();
    const holder = limiter.tryAcquire();
    const waiting = wait({ timeoutMs: 50 });
    expect(timer.hasRef()).toBe(false);
    limiter.pause();
    await vi.advanceTimersByTimeAsync(50);
    expect(await waiting).toBe('left');
    expect(timer.hasRef()).toBe(false);
    holder?.release();
  });

  it('grants the waiters when it fires', async () => {
    const { limiter, timer, wait } = setUp();
    limiter.pause(timer);
    const waiting = wait();
    await vi.advanceTimersByTimeAsync(HOUR);
    ((await waiting) as Permit).release();
    expect(limiter.stats()).toMatchObject({ active: 0, paused: false });
  });

  it.each([
    [5, 'got 5 (number)'],
    ['soon', 'got "soon" (string)'],
    [null, 'got null (null)'],
    [{}, 'got an object (object)'],
    [() => {}, 'got a function (function)'],
  ])('throws when it is %o, and nothing is paused', (timer, got) => {
    const { limiter } = setUp();
    expect(() => limiter.pause(timer as never)).toThrow(TypeError);
    expect(() => limiter.pause(timer as never)).toThrow(
      `Expected \`timer\` to be what setTimeout returned, ${got}`,
    );
    expect(limiter.stats().paused).toBe(false);
    expect(limiter.tryAcquire()).toBeDefined();
  });
});

describe('A Retry-After of an hour', () => {
  /** Timers that keep the process alive. */
  const timers = () => process.getActiveResourcesInfo().filter((kind) => kind === 'Timeout').length;

  it('keeps the process alive only while there are waiters', async () => {
    const before = timers();
    const adaptive = new AdaptiveLimit();
    const limiter = new ConcurrencyLimiter({ adaptive });
    adaptive.blockFor(HOUR);
    expect(timers()).toBe(before);
    const controllers = [new AbortController(), new AbortController()] as const;
    const waiting = controllers.map(({ signal }) => limiter.acquire({ signal }).catch(() => 'left'));
    expect(timers()).toBe(before + 1);
    adaptive.blockFor(2 * HOUR);
    expect(timers()).toBe(before + 1);
    controllers[0].abort();
    expect(timers()).toBe(before + 1);
    controllers[1].abort();
    expect(timers()).toBe(before);
    expect(await Promise.all(waiting)).toEqual(['left', 'left']);
    await limiter.close();
  });

  it('lets a process exit whose only waiter has aborted', () => {
    const source = (name: string) => new URL(`../../src/limiter/${name}.ts`, import.meta.url).href;
    const program = `
      import { AdaptiveLimit } from '${source('adaptive-limit')}';
      import { ConcurrencyLimiter } from '${source('concurrency-limiter')}';
      const adaptive = new AdaptiveLimit();
      const limiter = new ConcurrencyLimiter({ adaptive });
      adaptive.blockFor(${HOUR});
      const controller = new AbortController();
      const waiting = limiter.run(() => 'ran', { signal: controller.signal }).catch((reason) => reason);
      controller.abort('left');
      console.log(await waiting, limiter.stats().paused);
    `;
    const args = ['--import', 'tsx', '--input-type=module', '--eval', program];
    const cwd = fileURLToPath(new URL('../..', import.meta.url));
    const ended = spawnSync(process.execPath, args, { cwd, encoding: 'utf8', timeout: 100_000 });
    expect(ended).toMatchObject({ stdout: 'left true\n', stderr: '', status: 0, signal: null });
  });
});
