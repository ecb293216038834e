import { channel } from 'node:diagnostics_channel';
import { beforeAll, describe, expect, it, vi } from 'vitest';
import { LIFECYCLE_EVENTS, type LifecycleEventName, type LifecycleEvents } from '../../src/hooks/events.js';
import { channels, checkHooks, LifecycleHooks, SILENT_HOOKS } from '../../src/hooks/lifecycle-hooks.js';
import { enableRedaction, redactError } from '../../src/internal/redaction.js';
import { endOfTurn } from '../support/promises.js';

const changed = { source: 'limiter', previous: 1, maxConcurrent: 2 };
const restored = { source: 'gate', key: 'sk-…1234' };

describe('LifecycleHooks', () => {
  it('calls every listener of an event, in the order they were added, and no other', () => {
    const hooks = new LifecycleHooks();
    const calls: unknown[] = [];
    hooks.on('limit:changed', (payload) => calls.push(['first', payload]));
    hooks.on('limit:changed', (payload) => calls.push(['second', payload]));
    hooks.on('key:restored', () => calls.push('another'));
    hooks.emit('limit:changed', changed);
    expect(calls).toEqual([
      ['first', changed],
      ['second', changed],
    ]);
  });

  it('returns itself, so that calls can be chained', () => {
    const hooks = new LifecycleHooks();
    const listener = () => {};
    expect(
      hooks.on('limit:changed', listener).once('key:restored', listener).off('limit:changed', listener),
    ).toBe(hooks);
  });

  it('calls a listener added by once the next time only', () => {
    const hooks = new LifecycleHooks();
    const listener = vi.fn();
    hooks.once('limit:changed', listener);
    hooks.emit('limit:changed', changed);
    hooks.emit('limit:changed', changed);
    expect(listener).toHaveBeenCalledExactlyOnceWith(changed);
    expect(hooks.listenerCount('limit:changed')).toBe(0);
    expect(hooks.hasListeners('limit:changed')).toBe(false);
  });

  it('calls it once also when another listener emits the same event in between', () => {
    const hooks = new LifecycleHooks();
    const listener = vi.fn();
    let again = true;
    hooks.on('limit:changed', () => {
      if (again) {
        again = false;
        hooks.emit('limit:changed', changed);
      }
    });
    hooks.once('limit:changed', listener);
    hooks.emit('limit:changed', changed);
    expect(listener).toHaveBeenCalledOnce();
  });

  it('calls a listener again that once adds again', () => {
    const hooks = new LifecycleHooks();
    const listener = vi.fn(() => {
      if (listener.mock.calls.length < 3) hooks.once('limit:changed', listener);
    });
    hooks.once('limit:changed', listener);
    for (let i = 0; i < 5; i++) hooks.emit('limit:changed', changed);
    expect(listener).toHaveBeenCalledTimes(3);
  });

  it('removes a listener by off, twice as well as once', () => {
    const hooks = new LifecycleHooks();
    const listener = vi.fn();
    hooks.on('limit:changed', listener);
    hooks.off('limit:changed', listener);
    hooks.off('limit:changed', listener);
    hooks.off('key:restored', listener);
    hooks.emit('limit:changed', changed);
    expect(listener).not.toHaveBeenCalled();
    expect(hooks.hasListeners('limit:changed')).toBe(false);
    hooks.on('limit:changed', listener);
    hooks.emit('limit:changed', changed);
    expect(listener).toHaveBeenCalledOnce();
  });

  it('removes by off what once added', () => {
    const hooks = new LifecycleHooks();
    const listener = vi.fn();
    hooks.once('limit:changed', listener).off('limit:changed', listener);
    hooks.emit('limit:changed', changed);
    expect(listener).not.toHaveBeenCalled();
  });

  it('does not call a listener that an earlier one has removed', () => {
    const hooks = new LifecycleHooks();
    const second = vi.fn();
    hooks.on('limit:changed', () => hooks.off('limit:changed', second));
    hooks.on('limit:changed', second);
    hooks.emit('limit:changed', changed);
    expect(second).not.toHaveBeenCalled();
  });

  it('knows a listener once: adding it again changes nothing', () => {
    const hooks = new LifecycleHooks();
    const listener = vi.fn();
    hooks.on('limit:changed', listener).on('limit:changed', listener).once('limit:changed', listener);
    expect(hooks.listenerCount('limit:changed')).toBe(1);
    hooks.emit('limit:changed', changed);
    hooks.emit('limit:changed', changed);
    expect(listener).toHaveBeenCalledTimes(2);
    hooks.off('limit:changed', listener);
    expect(hooks.hasListeners('limit:changed')).toBe(false);
  });

  it('keeps a listener that was added by once and then by on', () => {
    const hooks = new LifecycleHooks();
    const listener = vi.fn();
    hooks.once('limit:changed', listener).on('limit:changed', listener);
    hooks.emit('limit:changed', changed);
    hooks.emit('limit:changed', changed);
    expect(listener).toHaveBeenCalledTimes(2);
  });

  it('knows the same function for each event apart', () => {
    const hooks = new LifecycleHooks();
    const listener = vi.fn();
    hooks.on('limit:changed', listener).on('key:restored', listener);
    hooks.off('limit:changed', listener);
    hooks.emit('limit:changed', changed);
    hooks.emit('key:restored', restored);
    expect(listener).toHaveBeenCalledExactlyOnceWith(restored);
  });

  it('rejects an unknown event and a listener that is not a function', () => {
    const hooks = new LifecycleHooks();
    expect(() => hooks.on('permit:given' as never, () => {})).toThrow(
      'There is no lifecycle event `permit:given`',
    );
    expect(() => hooks.once('toString' as never, () => {})).toThrow(TypeError);
    expect(() => hooks.on(Symbol('permit') as never, () => {})).toThrow('There is no lifecycle event');
    expect(() => hooks.on('limit:changed', {} as never)).toThrow(
      'Expected `listener of limit:changed` to be a function, got an object (object)',
    );
    expect(hooks.off('permit:given' as never, () => {})).toBe(hooks);
  });

  it('says whether an event has listeners, and whether any event has', () => {
    const hooks = new LifecycleHooks();
    const listener = () => {};
    expect(hooks.hasListeners('limit:changed')).toBe(false);
    expect(hooks.hasAnyListeners).toBe(false);
    hooks.on('key:restored', listener);
    expect(hooks.hasListeners('limit:changed')).toBe(false);
    expect(hooks.hasAnyListeners).toBe(true);
    hooks.on('limit:changed', listener);
    expect(hooks.hasListeners('limit:changed')).toBe(true);
    hooks.off('limit:changed', listener).off('key:restored', listener);
    expect(hooks.hasAnyListeners).toBe(false);
  });
});

describe('A listener that fails', () => {
  // As any pool, gate, tool manager or log does.
  beforeAll(enableRedaction);

  const setUp = () => {
    const hooks = new LifecycleHooks();
    const errors: LifecycleEvents['hook:error'][] = [];
    hooks.on('hook:error', (payload) => errors.push(payload));
    return { hooks, errors };
  };

  it('by throwing is reported as hook:error, and those after it are called', () => {
    const { hooks, errors } = setUp();
    const error = new Error('thrown');
    const after = vi.fn();
    hooks.on('limit:changed', () => {
      throw error;
    });
    hooks.on('limit:changed', after);
    hooks.emit('limit:changed', changed);
    expect(errors).toEqual([{ event: 'limit:changed', error: redactError(error) }]);
    expect(after).toHaveBeenCalledExactlyOnceWith(changed);
  });

  it('by rejecting is reported as hook:error, and leaves no unhandled rejection', async () => {
    const { hooks, errors } = setUp();
    const error = new Error('rejected');
    hooks.on('limit:changed', async () => {
      await undefined;
      throw error;
    });
    hooks.emit('limit:changed', changed);
    await endOfTurn();
    expect(errors).toEqual([{ event: 'limit:changed', error: redactError(error) }]);
  });

  it('by a thenable that rejects or throws is reported too', async () => {
    const { hooks, errors } = setUp();
    hooks.on('limit:changed', () => ({
      // biome-ignore lint/suspicious/noThenProperty: thenables are what is tested
      then: (_: unknown, reject: (error: unknown) => void) => reject('rejected'),
    }));
    hooks.on('limit:changed', () => ({
      // biome-ignore lint/suspicious/noThenProperty: thenables are what is tested
      then() {
        throw 'thrown';
      },
    }));
    hooks.on('limit:changed', () => ({
      // biome-ignore lint/suspicious/noThenProperty: thenables are what is tested
      get then() {
        throw 'from the getter';
      },
    }));
    hooks.emit('limit:changed', changed);
    await endOfTurn();
    expect(errors.map(({ error }) => error.message).sort()).toEqual([
      'from the getter',
      'rejected',
      'thrown',
    ]);
  });

  it('each time is reported each time, and stays', () => {
    const { hooks, errors } = setUp();
    hooks.on('limit:changed', () => {
      throw new Error('always');
    });
    hooks.emit('limit:changed', changed);
    hooks.emit('limit:changed', changed);
    expect(errors).toHaveLength(2);
  });

  it('never makes emit throw, without listeners of hook:error either', async () => {
    const hooks = new LifecycleHooks();
    hooks.on('limit:changed', () => {
      throw new Error('unheard');
    });
    hooks.on('limit:changed', () => Promise.reject(new Error('unheard')));
    hooks.emit('limit:changed', changed);
    await endOfTurn();
  });

  it('of hook:error is not reported to itself', async () => {
    const hooks = new LifecycleHooks();
    const failing = vi.fn(() => {
      throw new Error('again');
    });
    hooks.on('hook:error', failing);
    hooks.on('hook:error', () => Promise.reject(new Error('again')));
    hooks.on('limit:changed', () => {
      throw new Error('first');
    });
    hooks.emit('limit:changed', changed);
    await endOfTurn();
    expect(failing).toHaveBeenCalledOnce();
  });
});

describe('The diagnostics channels', () => {
  it('stand for every event by name, as pipeline-pool:<event>', () => {
    expect(Object.keys(channels)).toEqual([...LIFECYCLE_EVENTS]);
    for (const event of LIFECYCLE_EVENTS) expect(channels[event]).toBe(channel(`pipeline-pool:${event}`));
    expect(new Set(LIFECYCLE_EVENTS).size).toBe(LIFECYCLE_EVENTS.length);
    expect(Object.isFrozen(LIFECYCLE_EVENTS)).toBe(true);
  });

  it.each(LIFECYCLE_EVENTS)(
    'publish %s while they have subscribers, and only then',
    (event: LifecycleEventName) => {
      const hooks = new LifecycleHooks();
      const messages: unknown[] = [];
      const subscriber = (message: unknown) => void messages.push(message);
      const payload = { source: 'test' } as never;
      hooks.emit(event, payload);
      expect(hooks.hasListeners(event)).toBe(false);
      channels[event].subscribe(subscriber);
      try {
        expect(hooks.hasListeners(event)).toBe(true);
        hooks.emit(event, payload);
      } finally {
        channels[event].unsubscribe(subscriber);
      }
      hooks.emit(event, payload);
      expect(hooks.hasListeners(event)).toBe(false);
      expect(messages).toEqual([{ event, payload }]);
    },
  );
});

describe('SILENT_HOOKS', () => {
  it('have no listeners and call none, neither listener nor subscriber', () => {
    const listener = vi.fn();
    const silent = SILENT_HOOKS;
    silent.on('limit:changed', listener);
    channels['limit:changed'].subscribe(listener);
    try {
      expect(silent.hasListeners('limit:changed')).toBe(false);
      silent.emit('limit:changed', changed);
    } finally {
      channels['limit:changed'].unsubscribe(listener);
      silent.off('limit:changed', listener);
    }
    expect(listener).not.toHaveBeenCalled();
  });
});

describe('The redaction of the host', () => {
  // As any pool, gate, tool manager or log does.
  beforeAll(enableRedaction);

  it('is undefined by default, and is what emitters apply last', () => {
    expect(new LifecycleHooks().redact).toBeUndefined();
    const hooks = new LifecycleHooks({ redact: (text) => text.replace('order 7', 'an order') });
    const errors: unknown[] = [];
    hooks.on('limit:changed', () => {
      throw new Error('no order 7, api_key=topsecret99');
    });
    hooks.on('hook:error', ({ error }) => errors.push(error));
    hooks.emit('limit:changed', changed);
    expect(errors).toMatchObject([{ message: 'no an order, api_key=[redacted]' }]);
  });

  it.each([[{ redact: 'all' }], [{ redactor: () => '' }], [null], ['redact']])('refuses %j', (options) => {
    expect(() => new LifecycleHooks(options as never)).toThrow(TypeError);
  });
});

describe('checkHooks', () => {
  it('accepts LifecycleHooks, and those of another copy of this package', () => {
    const hooks = new LifecycleHooks();
    expect(checkHooks('hooks', hooks)).toBe(hooks);
    const foreign = { emit() {}, hasListeners: () => false } as unknown as LifecycleHooks;
    expect(checkHooks('hooks', foreign)).toBe(foreign);
  });

  it.each([[{}], [() => {}], ['hooks'], [{ emit() {} }], [null]])('refuses %s', (value) => {
    expect(() => checkHooks('hooks', value as never)).toThrow('Expected `hooks` to be a LifecycleHooks');
  });
});
