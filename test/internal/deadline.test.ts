import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { withDeadline } from '../../src/internal/deadline.js';
import { deferred } from '../limiter/event-loop.js';

const late = (ms: number) => new Error(`not done in ${ms} ms`);

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
});

describe('withDeadline', () => {
  it('settles as the work does, and its timer is gone then', async () => {
    expect(await withDeadline(Promise.resolve(7), 100, late)).toBe(7);
    await expect(withDeadline(Promise.reject(new Error('no')), 100, late)).rejects.toThrow('no');
    await vi.advanceTimersByTimeAsync(0);
    expect(vi.getTimerCount()).toBe(0);
  });

  it('rejects with what is made of the deadline when the time is up first', async () => {
    const { promise, resolve } = deferred();
    const refused = expect(withDeadline(promise, 100, late)).rejects.toThrow('not done in 100 ms');
    await vi.advanceTimersByTimeAsync(100);
    await refused;
    resolve();
  });

  it('swallows a rejection of the work that comes afterwards', async () => {
    const { promise, reject } = deferred();
    const refused = expect(withDeadline(promise, 100, late)).rejects.toThrow('not done');
    await vi.advanceTimersByTimeAsync(100);
    await refused;
    reject(new Error('late'));
    await vi.advanceTimersByTimeAsync(0);
  });

  it('makes nothing of the deadline when the work is in time', async () => {
    const onDeadline = vi.fn(late);
    await withDeadline(Promise.resolve(), 100, onDeadline);
    await vi.advanceTimersByTimeAsync(100);
    expect(onDeadline).not.toHaveBeenCalled();
  });

  it('is the work itself where there is no deadline', () => {
    const work = Promise.resolve();
    expect(withDeadline(work, undefined, late)).toBe(work);
    expect(vi.getTimerCount()).toBe(0);
  });
});
