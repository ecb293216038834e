import { getEventListeners } from 'node:events';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { boundedCall } from '../../src/internal/bounded-call.js';
import { deferred } from '../limiter/event-loop.js';

const timeoutError = (ms: number) => new Error(`took longer than ${ms} ms`);
const bounds = { timeoutMs: 100, timeoutError };

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
});

describe('boundedCall', () => {
  it('gives what the callback gives, now or later, and no timer stays', async () => {
    expect(await boundedCall(() => 1, bounds)).toBe(1);
    expect(await boundedCall(async () => 2, bounds)).toBe(2);
    // biome-ignore lint/suspicious/noThenProperty: a thenable is what is tested
    const thenable = { then: (resolve: (value: number) => void) => resolve(3) } as PromiseLike<number>;
    expect(await boundedCall(() => thenable, bounds)).toBe(3);
    expect(await boundedCall(() => undefined, bounds)).toBeUndefined();
    expect(vi.getTimerCount()).toBe(0);
  });

  it('rejects as the callback does, whether it throws or rejects, and no timer stays', async () => {
    const error = new Error('of the host');
    const thrower = () => {
      throw error;
    };
    await expect(boundedCall(thrower, bounds)).rejects.toBe(error);
    await expect(boundedCall(() => Promise.reject(error), bounds)).rejects.toBe(error);
    await expect(boundedCall(() => Promise.reject(undefined), bounds)).rejects.toBeUndefined();
    expect(vi.getTimerCount()).toBe(0);
  });

  it('rejects when the time is up, and aborts the signal of the callback with the same error', async () => {
    let seen: AbortSignal | undefined;
    const call = boundedCall((signal) => {
      seen = signal;
      return new Promise(() => {});
    }, bounds);
    const refused = expect(call).rejects.toThrow('took longer than 100 ms');
    await vi.advanceTimersByTimeAsync(99);
    expect(seen?.aborted).toBe(false);
    await vi.advanceTimersByTimeAsync(1);
    await refused;
    expect(seen?.reason).toMatchObject({ message: 'took longer than 100 ms' });
  });

  it('waits for ever where no time is set', async () => {
    const { promise, resolve } = deferred<string>();
    const call = boundedCall(() => promise, { timeoutError });
    expect(vi.getTimerCount()).toBe(0);
    await vi.advanceTimersByTimeAsync(3_600_000);
    resolve('at last');
    expect(await call).toBe('at last');
  });

  it('ends with the reason of its signal, and aborts the signal of the callback', async () => {
    const controller = new AbortController();
    let seen: AbortSignal | undefined;
    const call = boundedCall(
      (signal) => {
        seen = signal;
        return new Promise(() => {});
      },
      { ...bounds, signal: controller.signal },
    );
    controller.abort('left');
    await expect(call).rejects.toBe('left');
    expect(seen?.reason).toBe('left');
    expect(vi.getTimerCount()).toBe(0);
  });

  it('does not call at all where its signal has aborted already', async () => {
    const callback = vi.fn();
    const call = boundedCall(callback, { ...bounds, signal: AbortSignal.abort('before') });
    await expect(call).rejects.toBe('before');
    expect(callback).not.toHaveBeenCalled();
    expect(vi.getTimerCount()).toBe(0);
  });

  it('leaves nothing on the signal it was given, however it ends', async () => {
    const { signal } = new AbortController();
    const bounded = { ...bounds, signal };
    await boundedCall(() => 1, bounded);
    await boundedCall(() => Promise.reject(new Error('no')), bounded).catch(() => {});
    const late = boundedCall(() => new Promise(() => {}), bounded).catch(() => {});
    expect(getEventListeners(signal, 'abort')).toHaveLength(1);
    await vi.advanceTimersByTimeAsync(100);
    await late;
    expect(getEventListeners(signal, 'abort')).toHaveLength(0);
  });

  it('hands over a result that comes too late, once', async () => {
    const onLate = vi.fn();
    const { promise, resolve } = deferred<string>();
    const call = boundedCall(() => promise, { ...bounds, onLate });
    const refused = expect(call).rejects.toThrow('took longer');
    await vi.advanceTimersByTimeAsync(100);
    await refused;
    resolve('late');
    await promise;
    await undefined;
    expect(onLate).toHaveBeenCalledExactlyOnceWith('late');
  });

  it('hands over nothing that came in time', async () => {
    const onLate = vi.fn();
    await boundedCall(() => 'in time', { ...bounds, onLate });
    await vi.advanceTimersByTimeAsync(100);
    expect(onLate).not.toHaveBeenCalled();
  });

  it('is not hurt by a taker that fails', async () => {
    const { promise, resolve } = deferred<string>();
    const call = boundedCall(() => promise, {
      ...bounds,
      onLate: () => {
        throw new Error('of the taker');
      },
    });
    const refused = expect(call).rejects.toThrow('took longer than');
    await vi.advanceTimersByTimeAsync(100);
    await refused;
    // Anything that escapes fails the run.
    resolve('late');
    await vi.advanceTimersByTimeAsync(0);
  });

  it('swallows a rejection that comes too late', async () => {
    const { promise, reject } = deferred();
    const call = boundedCall(() => promise, bounds);
    const refused = expect(call).rejects.toThrow('took longer');
    await vi.advanceTimersByTimeAsync(100);
    await refused;
    reject(new Error('late'));
    await vi.advanceTimersByTimeAsync(0);
  });

  it('takes a result that is there before the abort', async () => {
    const controller = new AbortController();
    const call = boundedCall(() => 'first', { ...bounds, signal: controller.signal });
    await Promise.resolve();
    await Promise.resolve();
    controller.abort('left');
    expect(await call).toBe('first');
  });

  it('is over when the callback aborts its own caller and throws at once', async () => {
    const controller = new AbortController();
    const call = boundedCall(
      () => {
        controller.abort('left');
        throw new Error('thrown');
      },
      { ...bounds, signal: controller.signal },
    );
    await expect(call).rejects.toBe('left');
    expect(vi.getTimerCount()).toBe(0);
  });
});
