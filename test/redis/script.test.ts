import { createClient } from 'redis';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { SCRIPT } from '../../src/redis/script.js';
import { STARTS_SCRIPT } from '../../src/redis/starts-script.js';
import { hasRedis, RedisServer } from './support/redis-server.js';

const LEASE_MS = 60_000;
const CHANNEL = '{fleet:limit}';
const KEYS = ['meta', 'queue', 'holds', 'leases', 'tenants', 'lanes'].map((part) => `${CHANNEL}:${part}`);
const [META, QUEUE, HOLDS, LEASES] = KEYS as [string, string, string, string];
const WINDOW = `${CHANNEL}:window`;
const NOT_EXECUTED = { status: 1 };

/** What a batch may say besides its operations. */
interface Header {
  readonly mode?: 'batch' | 'join' | 'local';
  readonly generation?: number;
  readonly epoch?: string;
  readonly renews?: boolean;
}

/** Batches that members may send in any state, to the script itself, under a clock and a server's identity of the test's own. */
describe.skipIf(!hasRedis)('the script of a fleet limit', () => {
  let server: RedisServer;
  let client: ReturnType<typeof createClient>;
  let nowMs: number;
  let runId: string;
  let uptimeS: number;
  let epoch: string;

  beforeAll(async () => {
    server = await RedisServer.start();
    client = createClient({ url: server.url });
    client.on('error', () => {});
    await client.connect();
  });
  afterAll(async () => {
    client.destroy();
    await server[Symbol.asyncDispose]();
  });
  beforeEach(async () => {
    await client.flushAll();
    nowMs = 1_700_000_000_000;
    runId = 'abc';
    uptimeS = 86_400;
    epoch = '';
    windows = undefined;
  });

  /** A gate's windows, for the script of its starts; else the script is that of a limit. */
  let windows: string | undefined;

  async function send(member: string, header: Header = {}, ...operations: (string | number)[]) {
    const text = (windows === undefined ? SCRIPT : STARTS_SCRIPT)
      .replace("call('TIME')", `{ ${Math.floor(nowMs / 1000)}, ${(nowMs % 1000) * 1000} }`)
      .replace("redis.pcall('INFO', 'server')", `'run_id:${runId} uptime_in_seconds:${uptimeS}'`);
    const args = [header.mode ?? 'batch', CHANNEL, member, header.generation ?? 1, header.epoch ?? epoch];
    args.push(LEASE_MS, (header.renews ?? true) ? 1 : 0, 0, 2, 0, 0);
    if (windows !== undefined) args.push(windows);
    args.push(...operations);
    const reply = (await client.eval(text, {
      keys: [...KEYS, WINDOW],
      arguments: args.map(String),
    })) as unknown[];
    if (reply.length === 1) return { status: reply[0] };
    const [status, at, , limit, , used, queued, members, , frozen, granted, , lost, results] = reply;
    epoch = String(at);
    return { status, epoch, limit, used, queued, members, frozen, granted, lost, results };
  }
  const join = (member: string, header: Header = {}, ...operations: (string | number)[]) =>
    send(member, { mode: 'join', ...header }, ...operations);
  const acquire = (id: string) => ['A', id, 0, 1, ''];
  /** The members renew their leases in time, and the clock goes on. */
  async function pass(ms: number, ...members: string[]): Promise<void> {
    const end = nowMs + ms;
    while (nowMs < end) {
      nowMs = Math.min(end, nowMs + LEASE_MS / 3);
      for (const member of members) await send(member);
    }
  }

  it('freezes nothing for the first member of a server that is older than a lease', async () => {
    expect(await join('a', {}, ...acquire('1'))).toMatchObject({ frozen: 0, used: 1, results: [0] });
  });

  it('freezes for the first member of a server that may be younger than a lease', async () => {
    // In whole seconds, and up to one too many.
    uptimeS = LEASE_MS / 1_000;
    expect(await join('a', {}, ...acquire('1'))).toMatchObject({ frozen: 1, used: 0, queued: 1 });
    await pass(LEASE_MS, 'a');
    expect(await send('a')).toMatchObject({ frozen: 0, used: 1, queued: 0 });
    await client.flushAll();
    epoch = '';
    uptimeS++;
    expect(await join('a', {}, ...acquire('1'))).toMatchObject({ frozen: 0, used: 1 });
  });

  it('rejects claims unless a freeze protects them', async () => {
    await join('a', {}, ...acquire('1'));
    expect(await join('b', {}, 'H', '7', 1)).toMatchObject({ frozen: 0, lost: ['7'], used: 1 });
    expect(await client.hGetAll(HOLDS)).toEqual({ 'a:1': '1' });
  });

  it('accepts claims during a freeze, and grants nothing until it ends', async () => {
    await join('a');
    const before = epoch;
    await client.flushAll();
    nowMs++;
    expect(await join('a', {}, 'H', '1', 1)).toMatchObject({ frozen: 1, lost: [], used: 1 });
    expect(epoch).not.toBe(before);
    expect(await join('b', {}, ...acquire('2'))).toMatchObject({ frozen: 1, used: 1, queued: 1 });
    await pass(LEASE_MS - 1, 'a', 'b');
    expect(await send('b')).toMatchObject({ frozen: 1, granted: [], queued: 1 });
    nowMs++;
    expect(await send('b')).toMatchObject({ frozen: 0, granted: ['2'], used: 2, queued: 0 });
  });

  it('freezes when a member remembers an epoch that Redis does not', async () => {
    await join('a', {}, ...acquire('1'));
    await client.flushAll();
    expect(await send('a')).toEqual(NOT_EXECUTED);
    expect(await client.exists(META)).toBe(0);
    expect(await join('a', { generation: 2 })).toMatchObject({ frozen: 1 });
  });

  it.each([
    ['holds', [META, QUEUE, LEASES]],
    ['waiters', [META, HOLDS, LEASES]],
    ['leases', [META, QUEUE, HOLDS]],
  ])('freezes for a newcomer that finds nothing but %s', async (_, lost) => {
    await join('a', {}, ...acquire('1'), ...acquire('2'), ...acquire('3'));
    await client.del(lost);
    expect(await join('b', { epoch: '' }, ...acquire('4'))).toMatchObject({ frozen: 1, used: 0, queued: 1 });
  });

  it('freezes for a newcomer when a member is still subscribed', async () => {
    const subscriber = client.duplicate();
    await subscriber.connect();
    try {
      await subscriber.subscribe(CHANNEL, () => {});
      expect(await join('a')).toMatchObject({ frozen: 1 });
    } finally {
      subscriber.destroy();
    }
  });

  it('executes nothing of another epoch', async () => {
    await join('a');
    expect(await send('a', { epoch: 'another' }, ...acquire('1'))).toEqual(NOT_EXECUTED);
    expect(await client.exists([QUEUE, HOLDS])).toBe(0);
  });

  it('executes nothing of another generation, and no join of an older one', async () => {
    await join('a', { generation: 2 }, ...acquire('1'));
    expect(await send('a', { generation: 1 }, ...acquire('2'), 'R', '1')).toEqual(NOT_EXECUTED);
    expect(await join('a', { generation: 1 }, ...acquire('3'))).toEqual({ status: 2 });
    expect(await join('a', { generation: 2 }, ...acquire('4'))).toEqual({ status: 2 });
    expect(await client.hGetAll(HOLDS)).toEqual({ 'a:1': '1' });
  });

  it.each([
    ['a hold', () => client.hDel(HOLDS, 'a:1')],
    ['all holds', () => client.del(HOLDS)],
    ['a waiter', async () => client.zRem(QUEUE, (await client.zRange(QUEUE, 0, 0))[0] as string)],
    ['all waiters', () => client.del(QUEUE)],
    ['a lease', () => client.zRem(LEASES, 'a')],
    ['all leases', () => client.del(LEASES)],
    ['everything but the waiters', () => client.del([META, HOLDS, LEASES])],
    [
      'the identity of the server',
      () => {
        runId = 'def';
      },
    ],
  ])('begins a frozen epoch after the loss or change of %s', async (_, lose) => {
    await join('a', {}, ...acquire('1'), ...acquire('2'), ...acquire('3'), ...acquire('4'));
    await join('b');
    const before = epoch;
    await lose();
    expect(await send('b', {}, ...acquire('5'))).toEqual(NOT_EXECUTED);
    expect(await join('b', { generation: 2 }, ...acquire('5'))).toMatchObject({
      frozen: 1,
      used: 0,
      queued: 1,
    });
    expect(epoch).not.toBe(before);
  });

  it('begins a frozen epoch when a member that it knows claims a hold that it does not', async () => {
    await join('a');
    const before = epoch;
    expect(await join('a', { generation: 2 }, 'H', '1', 1)).toMatchObject({ frozen: 1, lost: [], used: 1 });
    expect(epoch).not.toBe(before);
  });

  it('takes the permits of a member that is silent for a lease, not earlier', async () => {
    await join('a', {}, ...acquire('1'), ...acquire('2'));
    await join('b', {}, ...acquire('3'));
    await pass(LEASE_MS - 1, 'b');
    expect(await send('b')).toMatchObject({ granted: [], used: 2, members: 2 });
    nowMs++;
    expect(await send('b')).toMatchObject({ granted: ['3'], used: 1, members: 1 });
    expect(await send('a', {}, 'R', '1')).toEqual(NOT_EXECUTED);
    expect(await join('a', { generation: 2 }, 'H', '1', 1)).toMatchObject({ lost: ['1'], used: 1 });
  });

  it('grants once what a join requests again because the reply was lost', async () => {
    await join('a', {}, ...acquire('1'));
    const again = await join('a', { generation: 2 }, ...acquire('1'));
    expect(again).toMatchObject({ results: [0], used: 1, frozen: 0 });
    expect(await send('a', { generation: 2 })).toMatchObject({ used: 1, frozen: 0 });
    expect(await client.hGetAll(HOLDS)).toEqual({ 'a:1': '1' });
  });

  describe('of the starts of a gate', () => {
    /** One window of 3 starts, two leases long. */
    beforeEach(() => {
      const window = ['w', 3, 2 * LEASE_MS, (2 * LEASE_MS) / 1_000, 1];
      windows = JSON.stringify({ w: [window], s: [1], k: [['k', []]], t: 2 * LEASE_MS });
    });
    const counted = async (): Promise<number> =>
      (await client.zRange(WINDOW, 0, -1)).reduce((sum, entry) => sum + Number(entry.split(':')[1]), 0);

    it('grants once what a join requests again because the reply was lost', async () => {
      await join('a', {}, ...acquire('1'));
      const again = await join(
        'a',
        { generation: 2 },
        ...[...acquire('1'), ...acquire('2'), ...acquire('3')],
      );
      expect(again).toMatchObject({ results: ['0/k', '0/k', '0/k'], frozen: 0 });
      expect(await send('a', { generation: 2 })).toMatchObject({ frozen: 0 });
    });

    it('counts what was reserved when holds are lost, from the end of the freeze', async () => {
      await join('a', {}, ...acquire('1'), ...acquire('2'));
      await client.del(HOLDS);
      const joined = await join('b', { epoch: '' }, ...acquire('3'), ...acquire('4'));
      expect(joined).toMatchObject({ frozen: 1, queued: 2 });
      await pass(LEASE_MS, 'b');
      expect(await send('b')).toMatchObject({ frozen: 0, queued: 1 });
      await pass(2 * LEASE_MS - 1, 'b');
      expect(await send('b')).toMatchObject({ queued: 1 });
      await pass(LEASE_MS / 100, 'b');
      expect(await send('b')).toMatchObject({ queued: 0 });
    });

    it('counts what a member reports of a window once', async () => {
      await join('a');
      await send('a', {}, 'M', 'w', 2, 10, 1, 5, 1);
      await send('a', {}, 'M', 'w', 2, 10, 1, 5, 1);
      expect(await counted()).toBe(2);
      await join('b', { epoch: '' });
      await send('b', {}, 'M', 'w', 1, 10, 1);
      expect(await counted()).toBe(3);
    });
  });

  it('renews leases when no member could', async () => {
    await join('a', {}, ...acquire('1'), ...acquire('2'));
    await join('b', {}, ...acquire('3'));
    nowMs += 2 * LEASE_MS;
    expect(await send('b')).toMatchObject({ granted: [], used: 2, members: 2 });
    await pass(LEASE_MS, 'b');
    expect(await client.hGetAll(HOLDS)).toEqual({ 'b:3': '1' });
  });

  it('lets no time run back with the clock of the server', async () => {
    await join('a', {}, ...acquire('1'), ...acquire('2'));
    await join('b', {}, ...acquire('3'));
    nowMs -= 10 * LEASE_MS;
    await send('b');
    await pass(LEASE_MS, 'b');
    expect(await client.hGetAll(HOLDS)).toEqual({ 'b:3': '1' });
  });
});
