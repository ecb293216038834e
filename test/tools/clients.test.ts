import fc from 'fast-check';
import { describe, expect, it, vi } from 'vitest';
import { Connection } from '../../src/tools/clients.js';
import type { AnyTool } from '../../src/tools/define-tools.js';
import { deferred, microtasks } from '../support/promises.js';
import { prop } from '../support/property.js';

const context = (signal = new AbortController().signal) => ({ instanceId: 1, signal });

/** The connection of a tool with these functions. */
const connectionOf = (tool: Pick<AnyTool, 'connect' | 'disconnect'>): Connection =>
  new Connection({ name: 'tool', tool: { ...tool, call: () => {} } }, async (_, run) => {
    await run(new AbortController().signal);
  });

function scripted() {
  const attempts: ReturnType<typeof deferred<string>>[] = [];
  const signals: AbortSignal[] = [];
  const disconnect = vi.fn((_client: string): unknown => undefined);
  const connection = connectionOf({
    connect: ({ signal }) => {
      const made = deferred<string>();
      attempts.push(made);
      signals.push(signal);
      return made.promise;
    },
    disconnect: (client) => disconnect(client),
  });
  return { connection, attempts, signals, disconnect };
}

describe('Connection', () => {
  it('creates the client once for any number of concurrent callers', async () => {
    const { connection, attempts } = scripted();
    const all = [connection.get(context()), connection.get(context()), connection.get(context())];
    attempts[0]?.resolve('client');
    expect(await Promise.all(all)).toEqual(['client', 'client', 'client']);
    expect(await connection.get(context())).toBe('client');
    expect(attempts).toHaveLength(1);
  });

  it('rejects every waiter with a failure, and tries again for the next caller', async () => {
    const { connection, attempts } = scripted();
    const all = [connection.get(context()), connection.get(context())];
    attempts[0]?.reject(new Error('no'));
    for (const one of all) await expect(one).rejects.toThrow('no');
    const again = connection.get(context());
    attempts[1]?.resolve('client');
    expect(await again).toBe('client');
  });

  it('tries again for a caller in the step of the failure', async () => {
    const { connection, attempts } = scripted();
    const again = connection.get(context()).catch(() => connection.get(context()));
    connection.get(context()).catch(() => {});
    attempts[0]?.reject(new Error('no'));
    await microtasks();
    attempts[1]?.resolve('client');
    expect(await again).toBe('client');
  });

  it('treats a connect that throws synchronously like one that rejects', async () => {
    const connection = connectionOf({
      connect: () => {
        throw new Error('at once');
      },
    });
    await expect(connection.get(context())).rejects.toThrow('at once');
  });

  it('accepts undefined as a client', async () => {
    const connect = vi.fn(() => undefined);
    const connection = connectionOf({ connect });
    expect(await connection.get(context())).toBeUndefined();
    expect(await connection.get(context())).toBeUndefined();
    expect(connect).toHaveBeenCalledOnce();
  });

  it('ends only the wait of the caller that aborts, while others wait', async () => {
    const { connection, attempts, signals } = scripted();
    const gone = new AbortController();
    const left = connection.get(context(gone.signal));
    const stays = connection.get(context());
    gone.abort(new Error('enough'));
    await expect(left).rejects.toThrow('enough');
    expect(signals[0]?.aborted).toBe(false);
    attempts[0]?.resolve('client');
    expect(await stays).toBe('client');
  });

  it('aborts connect when the last waiter leaves, and disconnects a client that arrives nevertheless', async () => {
    const { connection, attempts, signals, disconnect } = scripted();
    const first = new AbortController();
    const left = connection.get(context(first.signal));
    first.abort(new Error('enough'));
    await expect(left).rejects.toThrow('enough');
    expect(signals[0]?.aborted).toBe(true);

    const next = connection.get(context());
    attempts[0]?.resolve('late');
    attempts[1]?.resolve('wanted');
    expect(await next).toBe('wanted');
    expect(disconnect.mock.calls).toEqual([['late']]);
  });

  it('does not connect for a caller that has aborted already', async () => {
    const { connection, attempts } = scripted();
    await expect(connection.get(context(AbortSignal.abort(new Error('before'))))).rejects.toThrow('before');
    expect(attempts).toHaveLength(0);
  });

  it('disconnects the client once, at close, and returns none afterwards', async () => {
    const { connection, attempts, disconnect } = scripted();
    const got = connection.get(context());
    attempts[0]?.resolve('client');
    await got;
    const reason = new Error('closed');
    await Promise.all([connection.close(reason), connection.close(new Error('again'))]);
    expect(disconnect.mock.calls).toEqual([['client']]);
    await expect(connection.get(context())).rejects.toBe(reason);
  });

  it('rejects the waiters at close, at once, and is closed once the client they waited for is disconnected', async () => {
    const { connection, attempts, signals, disconnect } = scripted();
    const got = connection.get(context());
    const reason = new Error('closed');
    let closed = false;
    const close = connection.close(reason).then(() => {
      closed = true;
    });
    await expect(got).rejects.toBe(reason);
    expect(signals[0]?.aborted).toBe(true);
    await microtasks();
    expect(closed).toBe(false);
    attempts[0]?.resolve('late');
    await close;
    expect(disconnect.mock.calls).toEqual([['late']]);
  });

  it('waits at close for an attempt that all waiters had left before', async () => {
    const { connection, attempts } = scripted();
    const caller = new AbortController();
    connection.get(context(caller.signal)).catch(() => {});
    caller.abort();
    await microtasks();
    let closed = false;
    const close = connection.close(new Error('closed')).then(() => {
      closed = true;
    });
    await microtasks();
    expect(closed).toBe(false);
    attempts[0]?.reject(new Error('aborted'));
    await close;
  });

  it('disconnects a client that arrives in the step of close', async () => {
    const { connection, attempts, disconnect } = scripted();
    const got = connection.get(context());
    attempts[0]?.resolve('client');
    await connection.close(new Error('closed'));
    await got.catch(() => {});
    await microtasks();
    expect(disconnect.mock.calls).toEqual([['client']]);
  });

  prop([
    fc.scheduler(),
    fc.array(fc.constantFrom('get', 'abort', 'arrive', 'fail', 'close'), { maxLength: 12 }),
  ])(
    'never has two clients open, and lets every client go that it made, in any order of events',
    async (scheduler, steps) => {
      const attempts: ReturnType<typeof deferred<number>>[] = [];
      const callers: AbortController[] = [];
      const open = new Set<number>();
      const given = new Set<unknown>();
      let made = 0;
      const connection = connectionOf({
        connect: () => {
          const next = deferred<number>();
          attempts.push(next);
          return next.promise;
        },
        disconnect: (client) => expect(open.delete(client)).toBe(true),
      });
      const arrive = (): void => {
        const next = attempts.shift();
        if (next === undefined) return;
        open.add(++made);
        next.resolve(made);
      };
      const todo = steps.map((step) => ({
        label: step,
        builder: async () => {
          if (step === 'get') {
            const caller = new AbortController();
            callers.push(caller);
            connection.get(context(caller.signal)).then(
              (client) => given.add(client),
              () => {},
            );
          } else if (step === 'abort') callers.shift()?.abort(new Error('enough'));
          else if (step === 'arrive') arrive();
          else if (step === 'fail') attempts.shift()?.reject(new Error('no'));
          else void connection.close(new Error('closed'));
        },
      }));
      scheduler.scheduleSequence(todo);
      await scheduler.waitAll();
      while (attempts.length > 0) arrive();
      await microtasks();
      // One at most is still open; whatever else was made has been let go.
      expect(open.size).toBeLessThanOrEqual(1);
      await connection.close(new Error('closed'));
      expect(open.size).toBe(0);
      expect(given.size).toBeLessThanOrEqual(made);
    },
  );
});
