import { inspect } from 'node:util';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { LifecycleHooks } from '../../src/hooks/lifecycle-hooks.js';
import { logTo } from '../../src/observability/logging/log.js';
import { PipelinePool } from '../../src/pool/pipeline-pool.js';

/** Errors that cannot be read as errors are read. */
const HOSTILE: Readonly<Record<string, () => unknown>> = {
  'a message without prototype': () => Object.assign(new Error('x'), { message: Object.create(null) }),
  'a message that is a symbol': () => Object.assign(new Error('x'), { message: Symbol('s') }),
  'a message that is an array': () => Object.assign(new Error('x'), { message: ['a', 'b'] }),
  'a message that throws': () =>
    Object.defineProperty(new Error('x'), 'message', {
      get() {
        throw new Error('a getter');
      },
    }),
  'a revoked proxy': () => {
    const { proxy, revoke } = Proxy.revocable(new Error('x'), {});
    revoke();
    return proxy;
  },
  'a revoked proxy as its cause': () => {
    const { proxy, revoke } = Proxy.revocable({}, {});
    revoke();
    return new Error('x', { cause: proxy });
  },
  'a symbol': () => Symbol('s'),
  undefined: () => undefined,
};

describe('An error that cannot be read', () => {
  const unhandled: unknown[] = [];
  const note = (error: unknown): void => void unhandled.push(error);
  beforeEach(() => process.on('unhandledRejection', note));
  afterEach(() => {
    process.off('unhandledRejection', note);
    expect(unhandled.splice(0)).toEqual([]);
  });

  const setUp = () => {
    const hooks = new LifecycleHooks();
    const failures: unknown[] = [];
    const lines: string[] = [];
    hooks.on('hook:error', (payload) => failures.push(payload));
    const write = (line: unknown) => void lines.push(String(line));
    logTo(hooks, { debug: write, info: write, warn: write, error: write }, { level: 'debug' });
    return { hooks, failures, lines };
  };

  it.each(Object.keys(HOSTILE))('fails a creation and its waiter only: %s', async (name) => {
    const { hooks, failures, lines } = setUp();
    let fails = true;
    const pool = new PipelinePool({
      size: 1,
      hooks,
      createRetry: { baseMs: 1, maxMs: 1 },
      create: () => {
        if (!fails) return {};
        fails = false;
        throw HOSTILE[name]?.();
      },
    });
    await expect(pool.acquire()).rejects.toMatchObject({ code: 'ERR_CREATE_FAILED', stage: 'create' });
    const lease = await pool.acquire();
    await lease.release();
    await pool.close();
    expect(lines.some((line) => line.startsWith('Could not create'))).toBe(true);
    expect(failures).toEqual([]);
  });

  it.each(Object.keys(HOSTILE))('of prepare frees the slot and rejects the waiter: %s', async (name) => {
    const { hooks, failures } = setUp();
    let fails = true;
    const pool = new PipelinePool({
      size: 1,
      hooks,
      create: () => ({}),
      prepare: () => {
        if (!fails) return;
        fails = false;
        throw HOSTILE[name]?.();
      },
    });
    await expect(pool.acquire()).rejects.toMatchObject({ code: 'ERR_PREPARE_FAILED', stage: 'prepare' });
    const lease = await pool.acquire();
    await lease.release();
    await pool.close();
    expect(failures).toEqual([]);
  });

  it.each(Object.keys(HOSTILE))(
    'of validate, reset and destroy is reported by an event: %s',
    async (name) => {
      const { hooks, failures } = setUp();
      const events: string[] = [];
      for (const event of ['instance:unhealthy', 'instance:destroy-failed'] as const)
        hooks.on(event, ({ error }) => void events.push(`${event} ${inspect(error?.message)}`));
      const fail = () => {
        throw HOSTILE[name]?.();
      };
      const pool = new PipelinePool({
        size: 1,
        hooks,
        validateAfterIdleMs: 0,
        create: () => ({}),
        validate: fail,
        reset: fail,
        destroy: fail,
      });
      const lease = await pool.acquire();
      await lease.release();
      await pool.close();
      expect(events).toHaveLength(2);
      expect(pool.stats()).toMatchObject({ live: 0, leased: 0, queued: 0 });
      expect(failures).toEqual([]);
    },
  );
});
