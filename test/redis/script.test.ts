import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { LIMIT_KEYS, SCRIPT } from '../../src/redis/script.js';
import { STARTS_SCRIPT } from '../../src/redis/starts-script.js';
import { seeded } from '../support/random-numbers.js';
import { type ConnectedServer, hasRedis, startConnected } from './support/redis-server.js';

const LEASE_MS = 60_000;
const PREFIX = '{fleet:limit}';
const CHANNEL = `${PREFIX}:push`;
const KEYS = LIMIT_KEYS.map((key) => `${PREFIX}:${key}`);
const [META, QUEUE, HOLDS, LEASES] = KEYS as [string, string, string, string];
const WINDOW = `${PREFIX}:window`;
const NOT_EXECUTED = { status: 1 };
const MODES = ['batch', 'renew'] as const;

/** What a batch may say besides its operations. */
interface Header {
  readonly mode?: 'batch' | 'renew' | 'join' | 'local' | 'leave';
  readonly generation?: number;
  readonly epoch?: string;
  readonly limit?: number;
  readonly version?: number;
}

/** Batches that members may send in any state, to the script itself, under a clock and a server's identity of the test's own. */
describe.skipIf(!hasRedis)('the script of a fleet limit', () => {
  let redis: ConnectedServer;
  let client: ConnectedServer['client'];
  let nowMs: number;
  /** What the clock of the server is behind. */
  let lateMs: number;
  let runId: string;
  let uptimeS: number;
  let epoch: string;

  beforeAll(async () => {
    redis = await startConnected();
    client = redis.client;
  });
  afterAll(() => redis[Symbol.asyncDispose]());
  beforeEach(async () => {
    await client.flushAll();
    nowMs = 1_700_000_000_000;
    lateMs = 0;
    runId = 'abc';
    uptimeS = 86_400;
    epoch = '';
    windows = undefined;
  });

  /** A gate's windows, for the script of its starts; else the script is that of a limit. */
  let windows: string | undefined;

  async function send(member: string, header: Header = {}, ...operations: (string | number)[]) {
    const clockMs = nowMs - lateMs;
    const text = (windows === undefined ? SCRIPT : STARTS_SCRIPT)
      .replace("call('TIME')", `{ ${Math.floor(clockMs / 1000)}, ${(clockMs % 1000) * 1000} }`)
      .replace("redis.pcall('INFO', 'server')", `'run_id:${runId} uptime_in_seconds:${uptimeS}'`);
    const { mode = 'renew', generation = 1 } = header;
    const args = [mode, member, generation, header.epoch ?? epoch, LEASE_MS];
    if (mode !== 'batch' && mode !== 'leave') args.push(0, header.limit ?? 2, header.version ?? 0, 0);
    if (windows !== undefined) args.push(windows);
    args.push(...operations);
    const reply = (await client.eval(text, {
      keys: [...KEYS, WINDOW],
      arguments: args.map(String),
    })) as unknown[];
    if (reply.length === 1) return { status: reply[0] };
    const [
      status,
      at,
      ,
      limit,
      version,
      used,
      queued,
      members,
      ,
      frozen,
      granted,
      ,
      lost,
      results,
      ,
      served,
    ] = reply;
    epoch = String(at);
    return { status, epoch, limit, version, used, queued, members, frozen, granted, lost, results, served };
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

  it('accepts the claims of 4,001 tenants, which are more values than Lua unpacks', async () => {
    const claims = Array.from({ length: 4_001 }, (_, i) => ['H', i, `1:t${i}`]).flat();
    expect(await join('a', { epoch: '1' }, ...claims)).toMatchObject({ used: 4_001, lost: [] });
    expect(await send('a', {}, 'R', 4_000)).toMatchObject({ used: 4_000, results: [1] });
    expect(await client.hExists(META, 't:t4000')).toBe(0);
  });

  it('lets no waiter that has aged exceed the cap of its tenant', async () => {
    const ask = (id: string, score: string, weight: number) => [
      'F',
      id,
      score,
      weight,
      '',
      't',
      'time',
      1,
      2,
      0,
    ];
    await join('a', {}, 'L', 3, ...ask('held', '+0', 1), 'A', 'other', '+0', 2, '');
    await send('a', {}, ...ask('heavy', '+1000', 2));
    nowMs += 5_000;
    await send('a', {}, ...ask('light', '+0', 1));
    expect(await send('a', {}, 'R', 'other')).toMatchObject({ granted: ['light'], used: 2 });
    expect(await send('a', {}, 'R', 'held', 'R', 'light')).toMatchObject({ granted: ['heavy'] });
  });

  it('serves a priority whose waiters came in one millisecond in its time, with aging', async () => {
    const ask = (id: string, tenant: string, score: string, cap: number) => [
      ...['F', id, score, 1, '', tenant, 'time', 1, cap, 0],
    ];
    await join('a', {}, ...ask('held', 'capped', '+0', 1), ...acquire('other'));
    await send('a', {}, 'L', 1, ...ask('low', 'capped', '+1000', 1), ...ask('later', 'free', '+1000', 0));
    // The older of the two may be served only from now on.
    expect(await send('a', {}, 'R', 'held')).toMatchObject({ granted: [], queued: 2 });
    nowMs += 5_000;
    await send('a', {}, ...ask('high', 'third', '+0', 0));
    expect(await send('a', {}, 'R', 'other')).toMatchObject({ granted: ['low'], queued: 2 });
  });

  it('keeps the state of a limit with 20 members in one piece of memory', async () => {
    for (let i = 0; i < 20; i++) await join(`member-${i}`, {}, ...acquire('1'));
    expect(await client.hStrLen(META, 'b')).toBe(64);
    expect(await client.objectEncoding(META)).toBe('listpack');
  });

  it('reads and writes no more than it needs for a release and a request', async () => {
    await join('a', {}, ...acquire('1'), ...acquire('2'));
    await join('b', {}, ...acquire('3'));
    nowMs += LEASE_MS / 4;
    await client.configResetStat();
    const { granted, results } = await send('b', { mode: 'batch' }, ...acquire('4'));
    expect([granted, results]).toEqual([[], [expect.any(String)]]);
    await send('a', { mode: 'batch' }, 'R', '1');
    const stats = await client.info('commandstats');
    const calls = [...stats.matchAll(/cmdstat_(\w+):calls=(\d+)/g)].map(
      ([, name, count]) => `${count} ${name}`,
    );
    expect(calls.filter((call) => !/eval|info|config/.test(call)).sort()).toEqual(
      // To check what is stored, and to queue; to release, to take from the queue, to hold, and to push.
      [
        '2 hmget',
        '2 hlen',
        '4 zcard',
        '1 zadd',
        '2 hget',
        '1 hdel',
        '1 zrange',
        '1 zrem',
        '3 hset',
        '1 hincrby',
        '1 publish',
      ].sort(),
    );
  });

  it('keeps the limit that was set last when data is lost before all have learned of it', async () => {
    await join('a');
    await join('b');
    expect(await send('a', {}, 'L', 5)).toMatchObject({ limit: 5 });
    const { version } = await send('a');
    await client.flushAll();
    // It knows the limit with which all began.
    expect(await join('b', { generation: 2, version: 1 })).toMatchObject({ frozen: 1, limit: 2 });
    const known = { limit: 5, version: Number(version) };
    expect(await join('a', { generation: 2, ...known })).toMatchObject({ frozen: 1, limit: 5 });
  });

  it('executes nothing of another epoch', async () => {
    await join('a');
    for (const mode of MODES) {
      expect(await send('a', { mode, epoch: 'another' }, ...acquire('1'))).toEqual(NOT_EXECUTED);
    }
    expect(await client.exists([QUEUE, HOLDS])).toBe(0);
  });

  it('executes nothing of another generation, and no join of an older one', async () => {
    await join('a', { generation: 2 }, ...acquire('1'));
    for (const mode of MODES) {
      expect(await send('a', { mode, generation: 1 }, ...acquire('2'), 'R', '1')).toEqual(NOT_EXECUTED);
    }
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
    for (const mode of MODES) expect(await send('b', { mode }, ...acquire('5'))).toEqual(NOT_EXECUTED);
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
    expect(await send('b', { mode: 'batch' })).toMatchObject({ granted: ['3'], used: 1, members: 1 });
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
    const counted = async (): Promise<unknown> =>
      client.eval(
        `local sum = 0
        for _, block in ipairs(redis.call('HVALS', KEYS[1])) do
          for _, amount in pairs(cmsgpack.unpack(block)) do sum = sum + amount end
        end
        return sum`,
        { keys: [WINDOW] },
      );

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
      const report = ['M', 'w', 1, 2, 10, 1, 5, 1];
      expect(await send('a', {}, ...report, 'R', '')).toMatchObject({ results: [1, 0] });
      await send('a', {}, ...report);
      expect(await counted()).toBe(2);
      await send('a', {}, 'M', 'w', 2, 1, 7, 1);
      await join('b', { epoch: '' });
      await send('b', {}, 'M', 'w', 1, 1, 10, 1);
      expect(await counted()).toBe(4);
    });

    it('keeps a window of 30 days until the end of its last slice, which is longer than two leases', async () => {
      const [perMs, sliceMs] = [30 * 86_400_000, 2_592_000];
      windows = JSON.stringify({ w: [['w', 5, perMs, sliceMs, 1]], s: [1], k: [['k', []]], t: perMs });
      await join('a');
      await send('a', {}, 'A', '1', 0, 1, '', 'S', '1', 0, 0);
      const endMs = Math.ceil(nowMs / sliceMs) * sliceMs + perMs;
      expect(endMs - nowMs - perMs).toBeGreaterThan(3 * LEASE_MS);
      expect(await client.pTTL(WINDOW)).toBeGreaterThan(endMs - nowMs);
    });

    describe('with a window of an hour', () => {
      const PER_MS = 3_600_000;
      const SLICE_MS = PER_MS / 1_000;
      const open = async (limit: number, perCall: boolean): Promise<void> => {
        const window = ['w', limit, PER_MS, SLICE_MS, perCall ? 1 : 0];
        windows = JSON.stringify({ w: [window], s: [1], k: [['k', []]], t: PER_MS });
        await join('a');
      };
      const start = (id: string, weight: number, ageMs = 0) => ['A', id, 0, weight, '', 'S', id, ageMs, 0];
      const bytes = async (): Promise<number> => {
        const sizes = await Promise.all([...KEYS, WINDOW].map((key) => client.memoryUsage(key)));
        return sizes.reduce<number>((sum, size) => sum + (size ?? 0), 0);
      };

      it.each([
        ['calls', 1],
        ['50,000 tokens each', 50_000],
      ])('keeps 5,000 starts of %s in a few kilobytes', async (_, weight) => {
        await open(10_000 * weight, weight === 1);
        // Fifty slices with each step, and the second hour takes the place of the first.
        for (let step = 0; step < 40; step++) {
          nowMs += 50 * SLICE_MS;
          const batch = Array.from({ length: 250 }, (_, i) =>
            start(`${step}-${i}`, weight, (i % 50) * SLICE_MS),
          );
          await join('a', { generation: step + 2 }, ...batch.flat());
          const starts = Number(await counted()) / weight;
          // Those of a thousandth of the window longer.
          expect([0, 5]).toContain(starts - 250 * Math.min(20, step + 1));
          expect(await bytes()).toBeLessThan(10_000);
        }
      });

      it('counts what a model counts, whatever is started, reported late and corrected, and when the clock jumps back', async () => {
        const random = seeded(1);
        const below = (max: number): number => Math.floor(max * random());
        const BIG = 2_000_000_000_000;
        await open(BIG, false);
        const slices = new Map<number, number>();
        const count = (ageMs: number, amount: number): void => {
          const slice = Math.ceil((nowMs - ageMs + 1) / SLICE_MS);
          slices.set(slice, (slices.get(slice) ?? 0) + amount);
        };
        const expected = (): number => {
          for (const slice of slices.keys()) if (slice * SLICE_MS + PER_MS <= nowMs) slices.delete(slice);
          return [...slices.values()].reduce((sum, amount) => sum + amount, 0);
        };
        for (let i = 0; i < 400; i++) {
          // Most steps are short; some pass a block or the whole window. In some the clock only jumps back.
          if (below(10) === 0) lateMs += below(100_000);
          else nowMs += below([10, 10_000, 100_000, 2 * PER_MS][below(40) === 0 ? 3 : below(3)] as number);
          const ageMs =
            below(4) > 0
              ? below(LEASE_MS)
              : below(2) > 0
                ? below(1.2 * PER_MS)
                : PER_MS - below(16 * SLICE_MS);
          const amount = 1 + below(below(2) === 0 ? 10 : BIG / 10_000);
          const operations = [...start(`${i}`, amount, ageMs)];
          const correction = below(3) === 0 ? below(2 * amount) - amount : 0;
          operations.push('V', 'k', ageMs, 0, correction);
          const reply = await join('a', { generation: i + 2 }, ...operations);
          expect(reply).toMatchObject({
            status: 0,
            results: [expect.stringMatching('^0'), nowMs - ageMs, 1],
          });
          count(ageMs, amount);
          count(ageMs, correction);
          expect(await counted()).toBe(expected());
          const [sum, blocks, first] = await client.hmGet(META, ['ws:w', 'wn:w', 'wf:w']);
          expect(Number(sum)).toBe(expected());
          const fields = (await client.hKeys(WINDOW)).map(Number);
          expect(fields).toHaveLength(Number(blocks));
          const started = [...slices].flatMap(([slice, of]) => (of === 0 ? [] : [slice]));
          if (started.length > 0) expect(Number(first)).toBeLessThanOrEqual(Math.min(...started));
          if (fields.length === 0) continue;
          expect(Math.floor(Number(first) / 16)).toBe(Math.min(...fields));
          const leftMs = Math.max(0, ...started) * SLICE_MS + PER_MS - nowMs;
          expect(await client.pTTL(WINDOW)).toBeGreaterThan(leftMs);
        }
      });
    });
  });

  it('takes what a member holds when it leaves, and what it waits for', async () => {
    await join('a', {}, ...acquire('1'), ...acquire('2'));
    await join('b', {}, ...acquire('3'));
    await join('c', {}, ...acquire('4'));
    await send('b', { mode: 'leave' });
    expect(await send('a', { mode: 'leave' })).toMatchObject({ members: 1, queued: 0, used: 1 });
    expect(await client.hGetAll(HOLDS)).toEqual({ 'c:4': '1' });
    await send('c', { mode: 'leave' });
    expect(await client.dbSize()).toBe(0);
  });

  it('lets a member leave that does not know of which epoch it is one, but not an older generation of it', async () => {
    await join('b');
    await join('a', { generation: 2 }, ...acquire('1'));
    expect(await send('a', { mode: 'leave', epoch: '' })).toEqual(NOT_EXECUTED);
    expect(await send('a', { mode: 'leave', generation: 2, epoch: '' })).toMatchObject({
      members: 1,
      used: 0,
    });
  });

  it('renews leases when no member could', async () => {
    await join('a', {}, ...acquire('1'), ...acquire('2'));
    await join('b', {}, ...acquire('3'));
    nowMs += 2 * LEASE_MS;
    expect(await send('b', { mode: 'batch' })).toMatchObject({ granted: [], used: 2, members: 2 });
    await pass(LEASE_MS, 'b');
    expect(await client.hGetAll(HOLDS)).toEqual({ 'b:3': '1' });
  });

  it('freezes when no script ran for half a lease, where a member may hold its share without Redis', async () => {
    await join('a', { mode: 'local' });
    await pass(LEASE_MS, 'a');
    expect(await send('a', { mode: 'batch' }, ...acquire('1'))).toMatchObject({ frozen: 0, used: 1 });
    nowMs += 0.6 * LEASE_MS;
    expect(await send('a', { mode: 'batch' }, ...acquire('2'))).toMatchObject({ frozen: 1, queued: 1 });
  });

  it('numbers the waiters of one millisecond in their order, and counts those that were granted', async () => {
    await join('a', {}, ...acquire('1'), ...acquire('2'));
    const numbers: number[] = [];
    for (let id = 3; id < 6; id++) {
      const { results } = await send('a', { mode: 'batch' }, ...acquire(`${id}`));
      numbers.push(Number((results as unknown[])[0]));
    }
    expect(new Set(numbers).size).toBe(3);
    expect(numbers).toEqual(numbers.toSorted((a, b) => a - b));
    expect(await send('a', { mode: 'batch' }, 'R', '1')).toMatchObject({ granted: ['3'], served: 1 });
    expect(await send('a', { mode: 'batch' }, 'R', '2')).toMatchObject({ granted: ['4'], served: 2 });
  });

  it('lets no time run back with the clock of the server', async () => {
    await join('a', {}, ...acquire('1'), ...acquire('2'));
    await join('b', {}, ...acquire('3'));
    nowMs -= 10 * LEASE_MS;
    await send('b', { mode: 'batch' });
    await pass(LEASE_MS, 'b');
    expect(await client.hGetAll(HOLDS)).toEqual({ 'b:3': '1' });
  });
});
