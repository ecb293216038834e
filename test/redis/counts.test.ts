import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { BATCH_STATE, LIMIT_KEYS, SCRIPT } from '../../src/redis/script.js';
import { STARTS_SCRIPT } from '../../src/redis/starts-script.js';
import { seeded } from '../support/random-numbers.js';
import { type ConnectedServer, hasRedis, startConnected } from './support/redis-server.js';

/** Random schedules of each kind; `SEEDS=100` and `SEED=1` (the first) look for more. */
const SEEDS = Number(process.env.SEEDS ?? 2);
const FIRST_SEED = Number(process.env.SEED ?? 1);
const STEPS = 200;
const LEASE_MS = 1_000;
const AGING_MS = 30;
const LIMITS = [1, 3, 5, 9];
const PREFIX = '{fleet:limit}';
const KEYS = LIMIT_KEYS.map((key) => `${PREFIX}:${key}`);

/** What a tenant may use. The last one's share makes each of its grants count for much. */
const TENANTS: Readonly<Record<string, readonly [share: number, cap: number, guaranteed: number]>> = {
  a: [2, 0, 0],
  b: [1, 2, 1],
  c: [4, 3, 0],
  d: [1, 0, 0],
  e: [0.001, 3, 3],
};

/** Windows as the script knows them: id, limit, perMs, sliceMs, by calls; and those of each key. */
const WINDOWS = [
  ['shared', 12, 700, 1, 1],
  ['a1', 6, 500, 1, 1],
  ['a2', 30, 2_000, 2, 0],
  ['b1', 8, 500, 1, 1],
  ['b2', 20, 1_500, 1, 0],
] as const;
const WINDOWS_OF: Readonly<Record<string, readonly string[]>> = {
  a: ['shared', 'a1', 'a2'],
  b: ['shared', 'b1', 'b2'],
};
const GATE = JSON.stringify({
  w: WINDOWS,
  s: [1],
  k: [
    ['a', [2, 3]],
    ['b', [4, 5]],
  ],
  t: 2_000,
});

/** What the keys contain, decoded by Redis itself. */
const READ = `
  local meta, tenants, windows = redis.call('HGETALL', KEYS[1]), {}, {}
  local fields = { x = 0 }
  for i = 1, #meta, 2 do
    local field, value = meta[i], meta[i + 1]
    if field == 'b' then value = { struct.unpack('${BATCH_STATE}', value) }
    elseif field == 'ts' or string.sub(field, 1, 2) == 't:' then value = cmsgpack.unpack(value) end
    fields[field] = value
  end
  for k = 7, #KEYS do
    local all, slices = redis.call('HGETALL', KEYS[k]), {}
    for i = 1, #all, 2 do
      for at, amount in pairs(cmsgpack.unpack(all[i + 1])) do slices[#slices + 1] = { all[i] * 16 + at - 1, amount } end
    end
    windows[#windows + 1] = { blocks = #all / 2, slices = slices }
  end
  local function list(of) return #of == 0 and 'none' or of end
  return cjson.encode({ fields = fields, windows = windows, queue = list(redis.call('ZRANGE', KEYS[2], 0, -1)),
    holds = list(redis.call('HGETALL', KEYS[3])), leases = list(redis.call('ZRANGE', KEYS[4], 0, -1)),
    lanes = list(redis.call('ZRANGE', KEYS[6] or '', 0, -1)) })`;

interface TenantState {
  readonly held: number;
  readonly waiting: number;
  readonly cap: number;
  readonly guaranteed: number;
  readonly shown: string;
  readonly received: number;
  readonly pending: number;
  readonly running: number;
}
interface Contents {
  readonly fields: Readonly<Record<string, unknown>>;
  readonly windows: readonly { readonly blocks: number; readonly slices: [number, number][] | object }[];
  readonly queue: string[] | 'none';
  readonly holds: string[] | 'none';
  readonly leases: string[] | 'none';
  readonly lanes: string[] | 'none';
}

/** A request, of a permit or of a start. */
interface Request {
  readonly id: string;
  readonly weight: number;
  readonly tenant: string | undefined;
  readonly score: string;
  number: string;
}

class Member {
  generation = 0;
  epoch = '';
  isJoined = false;
  readonly held = new Map<string, Request>();
  readonly waiting = new Map<string, Request>();
  constructor(readonly name: string) {}
}

const listOf = (list: string[] | 'none'): string[] => (list === 'none' ? [] : list);
const sum = (values: Iterable<number>): number => [...values].reduce((total, value) => total + value, 0);

/** Random batches of members that join, leave and lose their leases, to a server that loses data and whose clock jumps. */
describe.skipIf(!hasRedis).each(['limit', 'gate'] as const)('the counts of a %s', (kind) => {
  const keys = kind === 'limit' ? KEYS : [...KEYS, ...WINDOWS.map(([id]) => `${PREFIX}:${id}`)];
  let redis: ConnectedServer;
  let client: ConnectedServer['client'];
  let sha: string;
  beforeAll(async () => {
    redis = await startConnected();
    client = redis.client;
    sha = await client.scriptLoad(
      (kind === 'limit' ? SCRIPT : STARTS_SCRIPT)
        .replace("call('TIME')", "call('HMGET', 'clock', 's', 'us')")
        .replace(
          "redis.pcall('INFO', 'server')",
          "('run_id:' .. call('HGET', 'clock', 'run') .. ' uptime_in_seconds:86400')",
        )
        // In the time of the server, which is not that of the test.
        .replaceAll("call('PEXPIRE', ", "call('EXISTS', "),
    );
  });
  afterAll(() => redis[Symbol.asyncDispose]());

  it.each([
    ['without faults', false, 1],
    ['without faults, with weights', false, 6],
    ['under faults', true, 6],
  ])('are those of what is held and queued, %s', async (_, hasFaults, maxWeight) => {
    for (let seed = FIRST_SEED; seed < FIRST_SEED + SEEDS; seed++) {
      await client.flushAll();
      const random = seeded(seed);
      const below = (max: number): number => Math.floor(max * random());
      const pick = <T>(of: Iterable<T>): T => [...of][below([...of].length)] as T;
      const members = ['m', 'n', 'o'].map((name) => new Member(name));
      const tenantsFrom = seed % 2 === 0 ? 0 : 40;
      const leaseMs = hasFaults ? LEASE_MS : 1e6;
      let nowMs = 1_700_000_000_000;
      let runId = 'a';
      let ids = 0;

      const newRequest = (step: number): Request => {
        const isOfTenant = kind === 'limit' && step >= tenantsFrom && below(6) > 0;
        const tenant = isOfTenant ? pick(Object.keys(TENANTS)) : undefined;
        const [, cap = 0] = TENANTS[tenant ?? ''] ?? [];
        const priority = pick([-2, 0, 0, 1, 4]);
        const score = kind === 'limit' ? `+${-priority * AGING_MS}` : `${-priority}`;
        const weight = Math.min(1 + below(maxWeight), cap || maxWeight);
        return { id: (ids++).toString(36), weight, tenant, score, number: '' };
      };
      const weightOf = ({ weight, tenant }: Request) =>
        tenant === undefined ? weight : `${weight}:${tenant}`;

      for (let step = 0; step < STEPS; step++) {
        nowMs += below(40);
        const member = pick(members);
        const fault = hasFaults ? below(60) : -1;
        if (fault === 0) nowMs += Math.floor(4 * LEASE_MS * random());
        else if (fault === 1) nowMs -= 5_000;
        else if (fault === 2) runId += 'a';
        else if (fault === 3) await client.del(pick(keys));
        else if (fault === 4) await client.flushAll();
        else if (fault === 5) member.isJoined = false;
        const clock = { s: Math.floor(nowMs / 1_000), us: (nowMs % 1_000) * 1_000, run: runId };
        await client.hSet('clock', clock);

        // What it sends.
        const leaves = member.isJoined && hasFaults && below(40) === 0;
        const mode = !member.isJoined ? 'join' : leaves ? 'leave' : pick(['batch', 'batch', 'renew']);
        const args: (string | number)[] = [];
        const settle: ((result: string) => void)[] = [];
        const add = (words: readonly (string | number)[], onResult = (_result: string): void => {}): void => {
          args.push(...words);
          settle.push(onResult);
        };
        const ask = (request: Request): void => {
          const { id, score, weight, number, tenant } = request;
          const words = [id, score, weight, number];
          const share = TENANTS[tenant ?? ''] ?? [];
          add(
            tenant === undefined ? ['A', ...words] : ['F', ...words, tenant, 'time', ...share],
            (result) => {
              if (!result.startsWith('0')) request.number = result;
            },
          );
        };
        if (mode === 'join') {
          member.generation++;
          if (kind === 'gate' || below(3) === 0) member.held.clear();
          for (const request of member.held.values())
            args.push('H', request.id, `${request.tenant === undefined ? '' : '+'}${weightOf(request)}`);
          for (const request of member.waiting.values()) ask(request);
        }
        for (let i = leaves ? 0 : below(5); i > 0; i--) {
          const choice = below(20);
          const held = mode === 'join' ? undefined : pick(member.held.values());
          const queued = [...member.waiting.values()].filter(({ number }) => number !== '');
          if (choice < 10) {
            const request = newRequest(step);
            member.waiting.set(request.id, request);
            ask(request);
          } else if (choice < 15 && held !== undefined) {
            member.held.delete(held.id);
            if (kind === 'gate' && below(2) === 0) add(['S', held.id, below(30), below(4) - 1]);
            else add([kind === 'limit' && below(4) === 0 ? 'B' : 'R', held.id]);
          } else if (choice < 18 && queued.length > 0 && mode !== 'join') {
            const request = pick(queued);
            const { id, score, number } = request;
            if (kind === 'limit' && below(3) === 0) add(['P', id, score, weightOf(request), number]);
            else {
              member.waiting.delete(id);
              add(['X', id, score, weightOf(request), number]);
            }
          } else if (kind === 'limit') {
            if (choice === 18) add(['L', pick(LIMITS)]);
          } else if (choice === 18) add(['V', pick(['a', 'b']), below(600), 0, below(4) - 1]);
          else {
            const [letter, key] = [pick(['C', 'O', 'O', 'N', 'U']), pick(['a', 'b'])];
            const why = pick(['cooldown', 'exhausted', 'quarantined']);
            add(letter === 'C' ? ['C', key, why, pick([50, 300, 900, -1]), 1 + below(5)] : [letter, key]);
          }
        }
        const header: (string | number)[] = [mode, member.name, member.generation, member.epoch, leaseMs];
        if (mode !== 'batch' && mode !== 'leave') header.push(0, 5, member.epoch === '' ? 0 : 1, 0);
        if (kind === 'gate') header.push(GATE);
        const reply = (await client.evalSha(sha, {
          keys,
          arguments: [...header, ...args].map(String),
        })) as unknown[];

        // What it learns.
        const at = `seed ${seed}, step ${step}`;
        const isLost = hasFaults && below(20) === 0;
        member.isJoined = reply[0] === 0 && !leaves && !isLost;
        if (leaves) member.waiting.clear();
        if (member.isJoined) {
          const [, epoch, , , , , , , , , , , lost, results] = reply;
          expect((results as unknown[]).length, at).toBe(settle.length);
          for (const [i, onResult] of settle.entries()) onResult(String((results as unknown[])[i]));
          for (const id of lost as string[]) member.held.delete(id);
          member.epoch = String(epoch);
        }
        // A loss may have come before what was not executed.
        if (reply[0] === 1) continue;
        const contents = JSON.parse((await client.eval(READ, { keys })) as string) as Contents;
        const holds = new Map<string, string>();
        const pairs = listOf(contents.holds);
        for (let i = 0; i < pairs.length; i += 2) holds.set(pairs[i] as string, pairs[i + 1] as string);
        for (const { name, held, waiting } of members) {
          for (const [id, request] of waiting)
            if (holds.has(`${name}:${id}`) && waiting.delete(id)) held.set(id, request);
          for (const id of held.keys()) if (!holds.has(`${name}:${id}`)) held.delete(id);
        }
        const state = contents.fields.b as number[] | undefined;
        if (state === undefined) {
          expect([contents.queue, contents.holds, contents.leases, contents.lanes], at).toEqual(
            Array(4).fill('none'),
          );
          continue;
        }
        const weights = [...holds.values()].map((value) => Number(/^\d+/.exec(value)?.[0]));
        expect([state[2], ...state.slice(6, 9)], at).toEqual([
          sum(weights),
          ...[holds.size, listOf(contents.queue).length, listOf(contents.leases).length],
        ]);
        for (const field of holds.keys()) expect(contents.leases, at).toContain(field.split(':')[0]);
        if (kind === 'limit') expectTenants(contents, holds, at);
        else expectWindows(contents, holds, at);
        if (hasFaults) continue;
        const waiting = sum(members.map((m) => m.waiting.size));
        expect([reply[6], holds.size], at).toEqual([waiting, sum(members.map((m) => m.held.size))]);
        if (kind === 'limit' && maxWeight === 1 && listOf(contents.queue).length > 0)
          expect(state[2], at).toBeGreaterThanOrEqual(Number(contents.fields.l));
      }
    }
  });
});

/** What tenants hold and wait for, what of it is in the queue, and the order by age. */
function expectTenants(contents: Contents, holds: ReadonlyMap<string, string>, at: string): void {
  const lanes = listOf(contents.lanes);
  const entries = lanes.filter((entry) => !/^[#@]/.test(entry));
  const common = contents.fields.ts as { waiting: number; entries: number; levels: unknown } | undefined;
  expect([common?.waiting ?? 0, common?.entries ?? 0], at).toEqual([entries.length, lanes.length]);
  const posted = lanes.filter((entry) => entry.startsWith('#')).map((entry) => entry.split(':'));
  const names = Object.keys(contents.fields).flatMap((field) =>
    field.startsWith('t:') ? field.slice(2) : [],
  );
  expect(
    [...new Set(entries.map((entry) => entry.split(':')[0]))].filter(
      (name) => !names.includes(name as string),
    ),
    at,
  ).toEqual([]);
  for (const name of names) {
    const state = contents.fields[`t:${name}`] as TenantState;
    const own = entries.filter((entry) => entry.startsWith(`${name}:`)).sort();
    const values = [...holds.values()].map((value) => value.split(':'));
    const held = sum(values.filter(([, tenant]) => tenant === name).map(([weight]) => Number(weight)));
    const of = `${at}, tenant ${name}`;
    expect([state.waiting, state.held], of).toEqual([own.length, held]);
    const isShown =
      own[0] !== undefined && (state.cap === 0 || held + Number(own[0].split(':').at(-1)) <= state.cap);
    expect(state.shown !== '', of).toBe(isShown);
    if (isShown) {
      expect(contents.queue, of).toContain(state.shown.slice(1));
      expect(state.shown.startsWith('!'), of).toBe(held < state.guaranteed);
    }
    const levels = new Set(own.map((entry) => entry.split(':')[1]));
    expect(posted.filter(([, , tenant]) => tenant === name).length, of).toBe(isShown ? levels.size : 0);
    expect(state.received, of).toBeGreaterThanOrEqual(0);
    if (held === 0) expect([state.pending, state.running], of).toEqual([0, 0]);
  }
  // Of each priority when its oldest is due.
  const firsts = new Map<string, string>();
  for (const [level = '', number = ''] of posted.toReversed()) firsts.set(level.slice(1), number);
  const levelOf = (text: string): number => Number(text.slice(1)) - (text[0] === '0' ? 2 ** 53 : 0);
  const dues = lanes.filter((entry) => entry.startsWith('@')).map((entry) => entry.split(':').slice(1));
  expect(new Map(dues.map(([due = '', level = '']) => [level, levelOf(due)])), at).toEqual(
    new Map(
      [...firsts].map(([level, number]) => [level, Math.floor(Number(number) / 1_000) + levelOf(level)]),
    ),
  );
}

/** What windows count and have reserved, and the trials of keys. */
function expectWindows({ fields, windows }: Contents, holds: ReadonlyMap<string, string>, at: string): void {
  const tags = Object.keys(fields).flatMap((field) => (field.startsWith('r:') ? field.slice(2) : []));
  expect(tags.sort(), at).toEqual([...holds.keys()].sort());
  const [nowMs = 0] = fields.b as number[];
  for (const [i, [id, , perMs, sliceMs, perCall]] of WINDOWS.entries()) {
    const of = `${at}, window ${id}`;
    const { blocks, slices } = windows[i] as Contents['windows'][number];
    const counted = Array.isArray(slices) ? (slices as [number, number][]) : [];
    const reserved = [...holds].flatMap(([field, weight]) => {
      const [, key = ''] = String(fields[`r:${field}`]).split('/');
      return WINDOWS_OF[key]?.includes(id) ? (perCall === 1 ? 1 : Number(weight)) : [];
    });
    const figures = ['ws', 'wr', 'wn'].map((name) => Number(fields[`${name}:${id}`] ?? 0));
    expect(figures, of).toEqual([sum(counted.map(([, amount]) => amount)), sum(reserved), blocks]);
    for (const [slice] of counted) expect(slice * sliceMs + perMs, of).toBeGreaterThan(nowMs);
  }
  for (const key of ['a', 'b']) {
    expect(Number(fields[`kt:${key}`] ?? 0), `${at}, trials of ${key}`).toBeGreaterThanOrEqual(0);
    if (fields[`ku:${key}`] !== undefined) continue;
    expect(
      Object.keys(fields).filter((field) => /^k[waitb]:/.test(field) && field.endsWith(key)),
      at,
    ).toEqual([]);
  }
}
