import { getEventListeners } from 'node:events';
import { describe, expect, it } from 'vitest';
import {
  type AbortWatcher,
  linkedController,
  unwatchAbort,
  watchAbort,
} from '../../src/internal/abort-watch.js';

const listenersOf = (signal: AbortSignal) => getEventListeners(signal, 'abort').length;

/** A watcher that notes what it was told, and may do something then. */
function watcherOf(told: unknown[], name: string, act: () => void = () => {}): AbortWatcher {
  return {
    onAbort(reason) {
      told.push([name, reason]);
      act();
    },
  };
}

describe('watchAbort', () => {
  it('tells every watcher once, at once, in the order they came, with the reason', () => {
    const controller = new AbortController();
    const told: unknown[] = [];
    for (const name of ['a', 'b', 'c']) watchAbort(controller.signal, watcherOf(told, name));
    controller.abort('left');
    expect(told).toEqual([
      ['a', 'left'],
      ['b', 'left'],
      ['c', 'left'],
    ]);
    controller.abort('again');
    expect(told).toHaveLength(3);
  });

  it('keeps one listener on a signal, however many watch it, and none after the last has gone', () => {
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

  it('knows a watcher once, however often it is registered', () => {
    const controller = new AbortController();
    const told: unknown[] = [];
    const watcher = watcherOf(told, 'w');
    watchAbort(controller.signal, watcher);
    watchAbort(controller.signal, watcher);
    controller.abort();
    expect(told).toHaveLength(1);
  });

  it('keeps the watchers of two signals apart', () => {
    const first = new AbortController();
    const second = new AbortController();
    const told: unknown[] = [];
    const both = watcherOf(told, 'both');
    watchAbort(first.signal, both);
    watchAbort(second.signal, both);
    first.abort(1);
    expect(told).toEqual([['both', 1]]);
    expect([listenersOf(first.signal), listenersOf(second.signal)]).toEqual([0, 1]);
    second.abort(2);
    expect(told).toHaveLength(2);
  });
});

describe('unwatchAbort', () => {
  it('keeps a watcher from being told', () => {
    const controller = new AbortController();
    const told: unknown[] = [];
    const gone = watcherOf(told, 'gone');
    watchAbort(controller.signal, gone);
    watchAbort(controller.signal, watcherOf(told, 'stays'));
    unwatchAbort(controller.signal, gone);
    controller.abort('left');
    expect(told).toEqual([['stays', 'left']]);
  });

  it('keeps a watcher from being told that another takes away when it is told itself', () => {
    const controller = new AbortController();
    const { signal } = controller;
    const told: unknown[] = [];
    const last = watcherOf(told, 'last');
    watchAbort(
      signal,
      watcherOf(told, 'first', () => unwatchAbort(signal, last)),
    );
    watchAbort(signal, watcherOf(told, 'middle'));
    watchAbort(signal, last);
    controller.abort('left');
    expect(told.map((entry) => (entry as [string])[0])).toEqual(['first', 'middle']);
    expect(listenersOf(signal)).toBe(0);
  });

  it('is harmless for a watcher that was never registered, is gone or has been told', () => {
    const controller = new AbortController();
    const told: unknown[] = [];
    const watcher = watcherOf(told, 'w', () => unwatchAbort(controller.signal, watcher));
    unwatchAbort(controller.signal, watcher);
    watchAbort(controller.signal, watcher);
    unwatchAbort(controller.signal, watcherOf([], 'stranger'));
    expect(listenersOf(controller.signal)).toBe(1);
    controller.abort();
    unwatchAbort(controller.signal, watcher);
    expect(told).toHaveLength(1);
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
