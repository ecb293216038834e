import { describe, expect, it, vi } from 'vitest';
import { CallContext } from '../../src/gate/call-context.js';
import { sleep, WakeUpTimer, waitWithin } from '../../src/gate/wait.js';
import { onFakeTimers } from '../support/fake-timers.js';

onFakeTimers();

const callContext = () =>
  new CallContext({ signal: undefined, timeoutMs: undefined, timeoutError: () => new Error('late') });

describe('the wait of a call', () => {
  it('rejects with the reason of a call that ends first, and leaves', async () => {
    const bounds = callContext();
    const leave = vi.fn();
    const waiting = waitWithin(bounds, () => leave);
    bounds.abort('left', 'signal');
    await expect(waiting).rejects.toBe('left');
    expect(leave).toHaveBeenCalledOnce();
  });

  it('does not leave once it has ended', async () => {
    const bounds = callContext();
    const leave = vi.fn();
    const waiting = waitWithin<number>(bounds, (end) => {
      end(1);
      return leave;
    });
    bounds.abort('left', 'signal');
    expect(await waiting).toBe(1);
    expect(leave).not.toHaveBeenCalled();
  });

  it('does not begin for a call that has ended', async () => {
    const bounds = callContext();
    bounds.abort('left', 'signal');
    await expect(sleep(10, bounds)).rejects.toBe('left');
    expect(vi.getTimerCount()).toBe(0);
  });
});

describe('the timer of a queue', () => {
  it('is set again only for a shorter time', async () => {
    const wakeUp = vi.fn();
    const timer = new WakeUpTimer(wakeUp);
    const timers = vi.spyOn(globalThis, 'setTimeout');
    timer.set(0, 100);
    timer.set(0, 200);
    expect(timers).toHaveBeenCalledTimes(1);
    timer.set(0, 50);
    await vi.advanceTimersByTimeAsync(50);
    expect(wakeUp).toHaveBeenCalledTimes(1);
    expect(vi.getTimerCount()).toBe(0);
  });
});
