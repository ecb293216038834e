import { fc, it as property } from '@fast-check/vitest';
import { describe, expect, it, vi } from 'vitest';
import { Connection } from '../../src/tools/connection.js';
import { deferred, settled } from './doubles.js';

const asked = (signal = new AbortController().signal) => ({ instanceId: 1, signal });

const seeOff = async (farewell: (signal: AbortSignal) => unknown): Promise<void> => {
  await farewell(new AbortController().signal);
};

function scripted() {
  const making: ReturnType<typeof deferred<string>>[] = [];
  const signals: AbortSignal[] = [];
  const disconnect = vi.fn((_client: string): unknown => undefined);
  const connection = new Connection<string>({
    connect: ({ signal }) => {
      const made = deferred<string>();
      making.push(made);
      signals.push(signal);
      return made.promise;
    },
    disconnect: (client) => disconnect(client),
    seeOff,
  });
  return { connection, making, signals, disconnect };
}

describe('Connection', () => {
  it('makes the client once, however many ask at once', async () => {
    const { connection, making } = scripted();
    const all = [connection.get(asked()), connection.get(asked()), connection.get(asked())];
    making[0]?.resolve('client');
    expect(await Promise.all(all)).toEqual(['client', 'client', 'client']);
    expect(await connection.get(asked())).toBe('client');
    expect(making).toHaveLength(1);
  });

  it('tells a failure to everybody who waits, and tries again for the next', async () => {
    const { connection, making } = scripted();
    const all = [connection.get(asked()), connection.get(asked())];
    making[0]?.reject(new Error('no'));
    for (const one of all) await expect(one).rejects.toThrow('no');
    const again = connection.get(asked());
    making[1]?.resolve('client');
    expect(await again).toBe('client');
  });

  it('tries again for who asks in the moment in which the failure is told', async () => {
    const { connection, making } = scripted();
    const again = connection.get(asked()).catch(() => connection.get(asked()));
    connection.get(asked()).catch(() => {});
    making[0]?.reject(new Error('no'));
    await settled();
    making[1]?.resolve('client');
    expect(await again).toBe('client');
  });

  it('takes a connect that throws at once for one that rejects', async () => {
    const connection = new Connection({
      connect: () => {
        throw new Error('at once');
      },
      disconnect: () => {},
      seeOff,
    });
    await expect(connection.get(asked())).rejects.toThrow('at once');
  });

  it('takes undefined for a client', async () => {
    const connect = vi.fn(() => undefined);
    const connection = new Connection({ connect, disconnect: () => {}, seeOff });
    expect(await connection.get(asked())).toBeUndefined();
    expect(await connection.get(asked())).toBeUndefined();
    expect(connect).toHaveBeenCalledOnce();
  });

  it('ends only the waiting of one who aborts, while others wait', async () => {
    const { connection, making, signals } = scripted();
    const gone = new AbortController();
    const left = connection.get(asked(gone.signal));
    const stays = connection.get(asked());
    gone.abort(new Error('enough'));
    await expect(left).rejects.toThrow('enough');
    expect(signals[0]?.aborted).toBe(false);
    making[0]?.resolve('client');
    expect(await stays).toBe('client');
  });

  it('aborts the making when the last waiter leaves, and lets the client go when it arrives all the same', async () => {
    const { connection, making, signals, disconnect } = scripted();
    const first = new AbortController();
    const left = connection.get(asked(first.signal));
    first.abort(new Error('enough'));
    await expect(left).rejects.toThrow('enough');
    expect(signals[0]?.aborted).toBe(true);

    const next = connection.get(asked());
    making[0]?.resolve('late');
    making[1]?.resolve('wanted');
    expect(await next).toBe('wanted');
    expect(disconnect.mock.calls).toEqual([['late']]);
  });

  it('makes nothing for one who has aborted before', async () => {
    const { connection, making } = scripted();
    await expect(connection.get(asked(AbortSignal.abort(new Error('before'))))).rejects.toThrow('before');
    expect(making).toHaveLength(0);
  });

  it('lets the client go once, at close, and gives none afterwards', async () => {
    const { connection, making, disconnect } = scripted();
    const got = connection.get(asked());
    making[0]?.resolve('client');
    await got;
    const reason = new Error('closed');
    await Promise.all([connection.close(reason), connection.close(new Error('again'))]);
    expect(disconnect.mock.calls).toEqual([['client']]);
    await expect(connection.get(asked())).rejects.toBe(reason);
  });

  it('turns the waiting away at close, at once, and is closed when what they waited for has come and gone', async () => {
    const { connection, making, signals, disconnect } = scripted();
    const got = connection.get(asked());
    const reason = new Error('closed');
    let closed = false;
    const close = connection.close(reason).then(() => {
      closed = true;
    });
    await expect(got).rejects.toBe(reason);
    expect(signals[0]?.aborted).toBe(true);
    await settled();
    expect(closed).toBe(false);
    making[0]?.resolve('late');
    await close;
    expect(disconnect.mock.calls).toEqual([['late']]);
  });

  it('waits at close for the end of a making that everybody had left before', async () => {
    const { connection, making } = scripted();
    const caller = new AbortController();
    connection.get(asked(caller.signal)).catch(() => {});
    caller.abort();
    await settled();
    let closed = false;
    const close = connection.close(new Error('closed')).then(() => {
      closed = true;
    });
    await settled();
    expect(closed).toBe(false);
    making[0]?.reject(new Error('aborted'));
    await close;
  });

  it('lets a client go that arrives in the step in which it is closed', async () => {
    const { connection, making, disconnect } = scripted();
    const got = connection.get(asked());
    making[0]?.resolve('client');
    await connection.close(new Error('closed'));
    await got.catch(() => {});
    await settled();
    expect(disconnect.mock.calls).toEqual([['client']]);
  });

  property.prop([
    fc.scheduler(),
    fc.array(fc.constantFrom('get', 'abort', 'arrive', 'fail', 'close'), { maxLength: 12 }),
  ])(
    'never has two clients open, and lets every client go that it made, in any order of events',
    async (scheduler, steps) => {
      const making: ReturnType<typeof deferred<number>>[] = [];
      const callers: AbortController[] = [];
      const open = new Set<number>();
      const given = new Set<number>();
      let made = 0;
      const connection = new Connection<number>({
        connect: () => {
          const next = deferred<number>();
          making.push(next);
          return next.promise;
        },
        disconnect: (client) => expect(open.delete(client)).toBe(true),
        seeOff,
      });
      const arrive = (): void => {
        const next = making.shift();
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
            connection.get(asked(caller.signal)).then(
              (client) => given.add(client),
              () => {},
            );
          } else if (step === 'abort') callers.shift()?.abort(new Error('enough'));
          else if (step === 'arrive') arrive();
          else if (step === 'fail') making.shift()?.reject(new Error('no'));
          else void connection.close(new Error('closed'));
        },
      }));
      scheduler.scheduleSequence(todo);
      await scheduler.waitAll();
      while (making.length > 0) arrive();
      await settled();
      // One at most is still open; whatever else was made has been let go.
      expect(open.size).toBeLessThanOrEqual(1);
      await connection.close(new Error('closed'));
      expect(open.size).toBe(0);
      expect(given.size).toBeLessThanOrEqual(made);
    },
  );
});
