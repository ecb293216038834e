import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import {
  type AbortWatcher,
  anySignal,
  boundedCall,
  ignoreRejection,
  LazySignal,
  linkedController,
  unwatchAbort,
  watchAbort,
  withDeadline,
  withSignal,
} from '../../src/internal/abort.js';
import { deferred, endOfTurn } from '../support/promises.js';
import { listenersOf } from '../support/signals.js';

/** A watcher that records its calls, and may do something then. */
function watcherOf(calls: unknown[], name: string, act: () => void = () => {}): AbortWatcher {
  return {
    onAbort(reason) {
      calls.push([name, reason]);
      act();
    },
  };
}

describe('watchAbort', () => {
  it('calls every watcher once, synchronously, in the order they were added, with the reason', () => {
    const controller = new AbortController();
    const calls: unknown[] = [];
    for (const name of ['a', 'b', 'c']) watchAbort(controller.signal, watcherOf(calls, name));
    controller.abort('left');
    expect(calls).toEqual([
      ['a', 'left'],
      ['b', 'left'],
      ['c', 'left'],
    ]);
    controller.abort('again');
    expect(calls).toHaveLength(3);
  });

  it('keeps one listener on a signal for any number of watchers, and none after the last is removed', () => {
    const { signal } = new AbortController();
    const watchers = Array.from({ length: 50 }, () => watcherOf([], 'w'));
    for (const watcher of watchers) watchAbort(signal, watcher);
    expect(listenersOf(signal)).toBe(1);
    for (const watcher of watchers) {
      expect(listenersOf(signal)).toBe(1);
      unwatchAbort(signal, watcher);
    }
    expect(listenersOf(signal)).toBe(0);
  });

  it('leaves no listener after the abort', () => {
    const controller = new AbortController();
    watchAbort(controller.signal, watcherOf([], 'w'));
    controller.abort();
    expect(listenersOf(controller.signal)).toBe(0);
  });

  it('calls a watcher once, however often it is added', () => {
    const controller = new AbortController();
    const calls: unknown[] = [];
    const watcher = watcherOf(calls, 'w');
    watchAbort(controller.signal, watcher);
    watchAbort(controller.signal, watcher);
    controller.abort();
    expect(calls).toHaveLength(1);
  });

  it('keeps the watchers of two signals apart', () => {
    const first = new AbortController();
    const second = new AbortController();
    const calls: unknown[] = [];
    const both = watcherOf(calls, 'both');
    watchAbort(first.signal, both);
    watchAbort(second.signal, both);
    first.abort(1);
    expect(calls).toEqual([['both', 1]]);
    expect([listenersOf(first.signal), listenersOf(second.signal)]).toEqual([0, 1]);
    second.abort(2);
    expect(calls).toHaveLength(2);
  });
});

describe('unwatchAbort', () => {
  it('does not call a removed watcher', () => {
    const controller = new AbortController();
    const calls: unknown[] = [];
    const gone = watcherOf(calls, 'gone');
    watchAbort(controller.signal, gone);
    watchAbort(controller.signal, watcherOf(calls, 'stays'));
    unwatchAbort(controller.signal, gone);
    controller.abort('left');
    expect(calls).toEqual([['stays', 'left']]);
  });

  it('does not call a watcher that another watcher removes during the abort', () => {
    const controller = new AbortController();
    const { signal } = controller;
    const calls: unknown[] = [];
    const last = watcherOf(calls, 'last');
    watchAbort(
      signal,
      watcherOf(calls, 'first', () => unwatchAbort(signal, last)),
    );
    watchAbort(signal, watcherOf(calls, 'middle'));
    watchAbort(signal, last);
    controller.abort('left');
    expect(calls.map((entry) => (entry as [string])[0])).toEqual(['first', 'middle']);
    expect(listenersOf(signal)).toBe(0);
  });

  it('is harmless for a watcher that was never added, is removed or has been called', () => {
    const controller = new AbortController();
    const calls: unknown[] = [];
    const watcher = watcherOf(calls, 'w', () => unwatchAbort(controller.signal, watcher));
    unwatchAbort(controller.signal, watcher);
    watchAbort(controller.signal, watcher);
    unwatchAbort(controller.signal, watcherOf([], 'stranger'));
    expect(listenersOf(controller.signal)).toBe(1);
    controller.abort();
    unwatchAbort(controller.signal, watcher);
    expect(calls).toHaveLength(1);
  });
});

describe('linkedController', () => {
  it('aborts with its parent, with the same reason', () => {
    const parent = new AbortController();
    const { controller } = linkedController(parent.signal);
    expect(controller.signal.aborted).toBe(false);
    parent.abort('left');
    expect(controller.signal.reason).toBe('left');
    expect(listenersOf(parent.signal)).toBe(0);
  });

  it('is aborted from the start where its parent is', () => {
    const { controller, unlink } = linkedController(AbortSignal.abort('before'));
    expect(controller.signal.reason).toBe('before');
    unlink();
  });

  it('leaves its parent alone when it is aborted itself', () => {
    const parent = new AbortController();
    const { controller } = linkedController(parent.signal);
    controller.abort();
    expect(parent.signal.aborted).toBe(false);
  });

  it('leaves nothing on its parent once it is unlinked', () => {
    const parent = new AbortController();
    const links = [linkedController(parent.signal), linkedController(parent.signal)];
    expect(listenersOf(parent.signal)).toBe(1);
    for (const { unlink } of links) unlink();
    expect(listenersOf(parent.signal)).toBe(0);
    parent.abort();
    for (const { controller } of links) expect(controller.signal.aborted).toBe(false);
  });

  it('needs no parent', () => {
    const { controller, unlink } = linkedController();
    unlink();
    expect(controller.signal.aborted).toBe(false);
  });
});

describe('anySignal', () => {
  it('aborts with whichever of two signals aborts first, and leaves no listener on the other', () => {
    for (const index of [0, 1] as const) {
      const controllers = [new AbortController(), new AbortController()] as const;
      const { signal } = anySignal(controllers[0].signal, controllers[1].signal);
      controllers[index].abort('first');
      controllers[index === 0 ? 1 : 0].abort('second');
      expect(signal.reason).toBe('first');
      expect(controllers.map((each) => listenersOf(each.signal))).toEqual([0, 0]);
    }
  });

  it('is the first signal itself where there is no second', () => {
    const { signal } = new AbortController();
    expect(anySignal(signal, undefined).signal).toBe(signal);
    expect(anySignal(signal, signal).signal).toBe(signal);
  });

  it('leaves nothing on either signal once it is unlinked', () => {
    const [first, second] = [new AbortController(), new AbortController()];
    const { signal, unlink } = anySignal(first.signal, second.signal);
    unlink();
    expect([listenersOf(first.signal), listenersOf(second.signal)]).toEqual([0, 0]);
    first.abort();
    expect(signal.aborted).toBe(false);
  });
});

describe('boundedCall', () => {
  const timeoutError = (ms: number) => new Error(`took longer than ${ms} ms`);
  const bounds = { timeoutMs: 100, timeoutError };

  beforeEach(() => {
    vi.useFakeTimers();
  });
  afterEach(() => {
    vi.useRealTimers();
  });

  it('resolves with the result of the callback, synchronous or not, and leaves no timer', async () => {
    expect(await boundedCall(() => 1, bounds)).toBe(1);
    expect(await boundedCall(async () => 2, bounds)).toBe(2);
    // biome-ignore lint/suspicious/noThenProperty: a thenable is what is tested
    const thenable = { then: (resolve: (value: number) => void) => resolve(3) } as PromiseLike<number>;
    expect(await boundedCall(() => thenable, bounds)).toBe(3);
    expect(await boundedCall(() => undefined, bounds)).toBeUndefined();
    expect(vi.getTimerCount()).toBe(0);
  });

  it('rejects as the callback does, whether it throws or rejects, and leaves no timer', async () => {
    const error = new Error('of the host');
    const thrower = () => {
      throw error;
    };
    await expect(boundedCall(thrower, bounds)).rejects.toBe(error);
    await expect(boundedCall(() => Promise.reject(error), bounds)).rejects.toBe(error);
    await expect(boundedCall(() => Promise.reject(undefined), bounds)).rejects.toBeUndefined();
    expect(vi.getTimerCount()).toBe(0);
  });

  it('rejects and leaves no timer when the promise itself throws', async () => {
    const fail = (): never => {
      throw new Error('looked at');
    };
    const promises = [
      () => Object.defineProperty(Promise.resolve(1), 'constructor', { get: fail }),
      () => Object.defineProperty(Promise.resolve(1), 'then', { value: fail }),
    ];
    for (const callback of promises) {
      const call = boundedCall(callback, { timeoutMs: 100, timeoutError });
      await expect(call).rejects.toThrow('looked at');
      expect(vi.getTimerCount()).toBe(0);
    }
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

  it('waits forever where no time is set', async () => {
    const { promise, resolve } = deferred<string>();
    const call = boundedCall(() => promise, {});
    expect(vi.getTimerCount()).toBe(0);
    await vi.advanceTimersByTimeAsync(3_600_000);
    resolve('at last');
    expect(await call).toBe('at last');
  });

  it('rejects with the reason of its signal, and aborts the signal of the callback', async () => {
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

  it('does not call the callback if its signal has aborted already', async () => {
    const callback = vi.fn();
    const call = boundedCall(callback, { ...bounds, signal: AbortSignal.abort('before') });
    await expect(call).rejects.toBe('before');
    expect(callback).not.toHaveBeenCalled();
    expect(vi.getTimerCount()).toBe(0);
  });

  it('leaves no listener on the given signal, however it ends', async () => {
    const { signal } = new AbortController();
    const bounded = { ...bounds, signal };
    await boundedCall(() => 1, bounded);
    await boundedCall(() => Promise.reject(new Error('no')), bounded).catch(() => {});
    const late = boundedCall(() => new Promise(() => {}), bounded).catch(() => {});
    expect(listenersOf(signal)).toBe(1);
    await vi.advanceTimersByTimeAsync(100);
    await late;
    expect(listenersOf(signal)).toBe(0);
  });

  it('passes a late result to onLate, once', async () => {
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

  it('does not call onLate for a result in time', async () => {
    const onLate = vi.fn();
    await boundedCall(() => 'in time', { ...bounds, onLate });
    await vi.advanceTimersByTimeAsync(100);
    expect(onLate).not.toHaveBeenCalled();
  });

  it('survives an onLate that throws', async () => {
    const { promise, resolve } = deferred<string>();
    const call = boundedCall(() => promise, {
      ...bounds,
      onLate: () => {
        throw new Error('of onLate');
      },
    });
    const refused = expect(call).rejects.toThrow('took longer than');
    await vi.advanceTimersByTimeAsync(100);
    await refused;
    // Anything that escapes fails the run.
    resolve('late');
    await vi.advanceTimersByTimeAsync(0);
  });

  it('swallows a late rejection', async () => {
    const { promise, reject } = deferred();
    const call = boundedCall(() => promise, bounds);
    const refused = expect(call).rejects.toThrow('took longer');
    await vi.advanceTimersByTimeAsync(100);
    await refused;
    reject(new Error('late'));
    await vi.advanceTimersByTimeAsync(0);
  });

  it('resolves with a result that precedes the abort', async () => {
    const controller = new AbortController();
    const call = boundedCall(() => 'first', { ...bounds, signal: controller.signal });
    await Promise.resolve();
    await Promise.resolve();
    controller.abort('left');
    expect(await call).toBe('first');
  });

  it('rejects with the abort reason if the callback aborts its own caller and throws', async () => {
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

describe('withDeadline', () => {
  const late = (ms: number) => new Error(`not done in ${ms} ms`);

  beforeEach(() => {
    vi.useFakeTimers();
  });
  afterEach(() => {
    vi.useRealTimers();
  });

  it('settles as the work does, and clears its timer', async () => {
    expect(await withDeadline(Promise.resolve(7), 100, late)).toBe(7);
    await expect(withDeadline(Promise.reject(new Error('no')), 100, late)).rejects.toThrow('no');
    await vi.advanceTimersByTimeAsync(0);
    expect(vi.getTimerCount()).toBe(0);
  });

  it('rejects with the error of onDeadline if the time is up first', async () => {
    const { promise, resolve } = deferred();
    const refused = expect(withDeadline(promise, 100, late)).rejects.toThrow('not done in 100 ms');
    await vi.advanceTimersByTimeAsync(100);
    await refused;
    resolve();
  });

  it('swallows a later rejection of the work', async () => {
    const { promise, reject } = deferred();
    const refused = expect(withDeadline(promise, 100, late)).rejects.toThrow('not done');
    await vi.advanceTimersByTimeAsync(100);
    await refused;
    reject(new Error('late'));
    await vi.advanceTimersByTimeAsync(0);
  });

  it('does not call onDeadline if the work is in time', async () => {
    const onDeadline = vi.fn(late);
    await withDeadline(Promise.resolve(), 100, onDeadline);
    await vi.advanceTimersByTimeAsync(100);
    expect(onDeadline).not.toHaveBeenCalled();
  });

  it('is the work itself without a deadline', () => {
    const work = Promise.resolve();
    expect(withDeadline(work, undefined, late)).toBe(work);
    expect(vi.getTimerCount()).toBe(0);
  });
});

describe('ignoreRejection', () => {
  it('handles the rejection of a promise or thenable, and takes any other value', async () => {
    const unhandled = vi.fn();
    process.on('unhandledRejection', unhandled);
    const { proxy, revoke } = Proxy.revocable({}, {});
    revoke();
    // biome-ignore lint/suspicious/noThenProperty: thenables are what is tested
    const thenable = { then: (_: unknown, reject: (error: unknown) => void) => reject('no') };
    for (const value of [Promise.reject(new Error('no')), thenable, proxy, undefined, null, 1, () => {}])
      ignoreRejection(value);
    await endOfTurn();
    await endOfTurn();
    process.off('unhandledRejection', unhandled);
    expect(unhandled).not.toHaveBeenCalled();
  });
});

describe('LazySignal', () => {
  it('aborts an AbortSignal that was read before, and one that is read later, with the first reason', () => {
    const lazy = new LazySignal();
    const before = lazy.signal;
    lazy.fire('first');
    lazy.fire('second');
    expect([before.aborted, before.reason, lazy.aborted, lazy.reason]).toEqual([
      true,
      'first',
      true,
      'first',
    ]);
    const unread = new LazySignal();
    unread.fire('ended');
    expect([unread.signal.aborted, unread.signal.reason]).toEqual([true, 'ended']);
    expect(unread.signal).toBe(unread.signal);
  });

  it('calls the watchers of its watchable form once, without those that left', () => {
    const lazy = new LazySignal();
    const calls: unknown[] = [];
    const watcher = (name: string) => ({ onAbort: (reason: unknown) => calls.push([name, reason]) });
    const [a, b] = [watcher('a'), watcher('b')];
    watchAbort(lazy.watchable, a);
    watchAbort(lazy.watchable, b);
    unwatchAbort(lazy.watchable, a);
    lazy.fire('over');
    lazy.fire('again');
    expect(calls).toEqual([['b', 'over']]);
    expect(() => lazy.throwIfAborted()).toThrow('over');
  });

  it('calls no listener that leaves while it aborts', () => {
    const lazy = new LazySignal();
    const called: string[] = [];
    const late = { handleEvent: () => called.push('late') };
    const early = {
      handleEvent: () => {
        called.push('early');
        lazy.removeEventListener('abort', late);
      },
    };
    lazy.addEventListener('abort', early);
    lazy.addEventListener('abort', late);
    lazy.fire('over');
    expect(called).toEqual(['early']);
    const other = new LazySignal();
    other.addEventListener('abort', late);
    other.signal.addEventListener('abort', () => other.removeEventListener('abort', late));
    other.fire('over');
    expect(called).toEqual(['early']);
  });
});

describe('withSignal', () => {
  it('makes the signal when it is read, of the object, of a copy or of an heir', () => {
    const source = new LazySignal();
    const context = withSignal({ key: 'a' }, source);
    expect(Object.keys(context)).toEqual(['key', 'signal']);
    const heir = Object.create(context) as typeof context;
    expect({ ...context }.signal).toBe(source.signal);
    expect(heir.signal).toBe(source.signal);
    source.fire(new Error('over'));
    expect(context.signal.aborted).toBe(true);
  });
});
