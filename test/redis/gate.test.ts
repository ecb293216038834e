import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { ServiceGate, type ServiceGateOptions } from 'pipeline-pool';
import { RedisLimits } from 'pipeline-pool/redis';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { httpError } from '../support/gates.js';
import { sleep, until } from '../support/promises.js';
import { bundleForFork } from './support/bundle.js';
import { CLIENTS, type TestClient } from './support/clients.js';
import { hasRedis, RedisServer } from './support/redis-server.js';

/** The members that a test has made, in one process, each with a client of its own. */
class Fleet implements AsyncDisposable {
  readonly #port: number;
  readonly #members: { gate: ServiceGate; limits: RedisLimits; client: TestClient }[] = [];

  constructor(port: number) {
    this.#port = port;
  }

  async member(options: Omit<ServiceGateOptions, 'limits' | 'limiter' | 'adaptive'>): Promise<ServiceGate> {
    const client = await CLIENTS['node-redis 6'](this.#port);
    const limits = new RedisLimits({ client: client.client, leaseMs: 600 });
    const gate = new ServiceGate({ ...options, limits });
    this.#members.push({ gate, limits, client });
    return gate;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const { gate } of this.#members) await gate.close();
    for (const { limits } of this.#members) await limits.close();
    for (const { client } of this.#members) await client[Symbol.asyncDispose]();
  }
}

interface Start {
  readonly process: ChildProcess;
  readonly key: string;
  readonly atMs: number;
}

/** Starts of calls in this process. Each counts from the last reading of the clock before it: its first line may run later. */
class Starts implements Disposable {
  readonly times: number[] = [];
  readonly #clock = vi.spyOn(performance, 'now');
  readonly add = (): void => {
    this.times.push(this.#clock.mock.results.at(-1)?.value as number);
  };

  [Symbol.dispose](): void {
    this.#clock.mockRestore();
  }
}

/** Fails if more than `limit` of these are in any span of `perMs`. */
function referee({ limit, perMs }: { limit: number; perMs: number }, times: readonly number[]): void {
  const sorted = [...times].sort((a, b) => a - b);
  for (let i = limit; i < sorted.length; i++)
    expect((sorted[i] as number) - (sorted[i - limit] as number)).toBeGreaterThanOrEqual(perMs);
}

let bundle: Promise<string> | undefined;
const gateProgram = (): Promise<string> => {
  bundle ??= bundleForFork('test/redis/support/gate-worker.ts');
  return bundle;
};

/** Processes that call a gate, and what a referee collects: from when each start counts. */
class Processes implements AsyncDisposable {
  readonly starts: Start[] = [];
  readonly processes: ChildProcess[] = [];
  readonly #args: string[];

  constructor(port: number, options: object, callers: number) {
    this.#args = [String(port), JSON.stringify(options), String(callers)];
  }

  async add(): Promise<void> {
    const program = await gateProgram();
    const child = spawn(process.execPath, [program, ...this.#args], { stdio: ['ignore', 'pipe', 'inherit'] });
    let rest = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      const lines = (rest + text).split('\n');
      rest = lines.pop() ?? '';
      for (const line of lines) {
        const [key = '', at] = line.split(' ');
        this.starts.push({ process: child, key, atMs: Number(at) / 1e6 });
      }
    });
    this.processes.push(child);
  }

  times(key?: string): number[] {
    return this.starts.filter((start) => key === undefined || start.key === key).map(({ atMs }) => atMs);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(
      this.processes.map(async (child) => {
        if (child.exitCode !== null || child.signalCode !== null) return;
        const ended = once(child, 'exit');
        child.kill('SIGKILL');
        await ended;
      }),
    );
  }
}

describe.skipIf(!hasRedis)('gates that share their limits over Redis', () => {
  let server: RedisServer;
  beforeAll(async () => {
    server = await RedisServer.start();
    // Later, no first use waits for a lease.
    await until(async () => /uptime_in_seconds:[3-9]/.test(String(await server.command('INFO', 'server'))));
  });
  afterAll(() => server[Symbol.asyncDispose]());

  it('start no more in a window than one gate would, at any alignment', async () => {
    await using fleet = new Fleet(server.port);
    const options = { name: 'window', rate: [{ limit: 20, perMs: 400 }] };
    const gates = await Promise.all([1, 2, 3].map(() => fleet.member(options)));
    using starts = new Starts();
    await Promise.all(gates.flatMap((gate) => Array.from({ length: 40 }, () => gate.run(starts.add))));
    expect(starts.times).toHaveLength(120);
    referee({ limit: 20, perMs: 400 }, starts.times);
  });

  it('report the free part of each key, of all members', async () => {
    await using fleet = new Fleet(server.port);
    const options = {
      name: 'free',
      keys: ['one', { key: 'two', rate: [{ limit: 10, perMs: 60_000 }] }],
      rate: [{ limit: 4, perMs: 60_000 }],
      sharedRate: [{ limit: 100, perMs: 60_000 }],
    };
    const [one, two] = [await fleet.member(options), await fleet.member(options)];
    for (let i = 0; i < 7; i++) await one.run(() => 1);
    // Two of four, and five of ten.
    await until(() => two.stats().keys.every(({ free }) => free === 0.5));
    await one.run(() => 1);
    await until(() => two.stats().keys.some(({ free }) => free < 0.5));
    expect(one.stats().keys).toHaveLength(2);
  });

  it('count weight, and correct it for all', async () => {
    await using fleet = new Fleet(server.port);
    const options = { name: 'weight', rate: [{ limit: 100, perMs: 3_000, unit: 'weight' as const }] };
    const [one, two] = [await fleet.member(options), await fleet.member(options)];
    // Estimated at all that there is, and then almost nothing.
    using starts = new Starts();
    await one.run(
      ({ reportUsage }) => {
        starts.add();
        reportUsage(10);
      },
      { weight: 100 },
    );
    await two.run(starts.add, { weight: 90 });
    await two.run(starts.add, { weight: 1 });
    const [first, second, third] = starts.times as [number, number, number];
    expect(second - first).toBeLessThan(3_000);
    expect(third - first).toBeGreaterThanOrEqual(3_000);
  });

  it('put a key into cooldown for all when one meets a 429, and send one probe of the whole fleet', async () => {
    await using fleet = new Fleet(server.port);
    const options = { name: 'cooldown', keys: ['the-only-key-of-all'], retry: { attempts: 3 } };
    const gates = await Promise.all([1, 2, 3].map(() => fleet.member(options)));
    for (const gate of gates) await gate.run(() => 1);
    const [first, second, third] = gates as [ServiceGate, ServiceGate, ServiceGate];
    let busy = true;
    const spans: [startedMs: number, endedMs: number][] = [];
    const call = (gate: ServiceGate) =>
      gate.run(async () => {
        if (busy) throw httpError(429, { 'retry-after': '3' });
        const startedMs = performance.now();
        await sleep(30);
        spans.push([startedMs, performance.now()]);
      });
    const met = call(first);
    const metMs = performance.now();
    await until(() => first.stats().retryAfterMs > 0);
    await until(() => second.stats().retryAfterMs > 0 && third.stats().retryAfterMs > 0);
    busy = false;
    await Promise.all([met, ...gates.flatMap((gate) => [call(gate), call(gate)])]);
    const [probe, ...others] = spans.sort(([a], [b]) => a - b) as [[number, number], ...[number, number][]];
    expect(probe[0] - metMs).toBeGreaterThanOrEqual(2_990);
    expect(others).toHaveLength(6);
    for (const [startedMs] of others) expect(startedMs).toBeGreaterThanOrEqual(probe[1] - 1);
  });

  it('quarantine a key for all, and take it back for all', async () => {
    await using fleet = new Fleet(server.port);
    const options = { name: 'quarantine', keys: ['a-key-that-is-refused'], retry: { attempts: 1 } };
    const [one, two] = [await fleet.member(options), await fleet.member(options)];
    await two.run(() => 1);
    await expect(one.run(() => Promise.reject(httpError(401)))).rejects.toMatchObject({
      code: 'ERR_KEYS_EXHAUSTED',
    });
    await until(() => two.stats().keys[0]?.state === 'quarantined');
    await expect(two.run(() => 1)).rejects.toMatchObject({ code: 'ERR_KEYS_EXHAUSTED' });
    // A member that comes later knows it as well.
    const three = await fleet.member(options);
    await until(() => three.stats().keys[0]?.state === 'quarantined');
    two.restoreKey('a-key-that-is-refused');
    await until(() => [one, three].every((gate) => gate.stats().keys[0]?.state === 'ready'));
    expect(await one.run(() => 1)).toBe(1);
  });

  it('remember a daily window when every member restarts, and keep no key in clear', async () => {
    const options = {
      name: 'day',
      keys: ['secret-key-of-the-account'],
      rate: [{ limit: 3, perMs: 86_400_000 }],
    };
    {
      await using fleet = new Fleet(server.port);
      const gate = await fleet.member(options);
      for (let i = 0; i < 2; i++) await gate.run(() => 1);
    }
    // All leases are over by then.
    await sleep(1_500);
    await using fleet = new Fleet(server.port);
    const gate = await fleet.member(options);
    await gate.run(() => 1, { timeoutMs: 30_000 });
    await expect(gate.run(() => 1, { timeoutMs: 300 })).rejects.toMatchObject({ code: 'ERR_GATE_TIMEOUT' });
    for (const key of await server.keys()) {
      const type = await server.command('TYPE', key);
      const content = await server.command(
        ...(type === 'hash' ? ['HGETALL', key] : type === 'zset' ? ['ZRANGE', key, '0', '-1'] : ['GET', key]),
      );
      expect(key + JSON.stringify(content)).not.toContain('secret-key');
      // It expires, or has done so meanwhile.
      expect(Number(await server.command('PTTL', key))).not.toBe(-1);
    }
  });

  it('report their starts again when Redis has lost them', async () => {
    await using fleet = new Fleet(server.port);
    const options = { name: 'lost', rate: [{ limit: 2, perMs: 3_000 }] };
    const [one, two] = [await fleet.member(options), await fleet.member(options)];
    using starts = new Starts();
    await one.run(starts.add);
    await two.run(starts.add);
    await sleep(200);
    await server.command('FLUSHALL');
    await two.run(starts.add);
    referee({ limit: 2, perMs: 3_000 }, starts.times);
  });

  it('close under fake timers that stand still', async () => {
    await using fleet = new Fleet(server.port);
    const gate = await fleet.member({ name: 'closing', rate: [{ limit: 10, perMs: 60_000 }] });
    await gate.run(() => 1);
    vi.useFakeTimers({ toFake: ['setImmediate'] });
    try {
      await gate.close();
    } finally {
      vi.useRealTimers();
    }
  });

  it('keep a tenant to its cap over all members', async () => {
    await using fleet = new Fleet(server.port);
    const options = {
      name: 'tenants',
      maxConcurrent: 4,
      tenants: (name: string) => (name === 'a' ? { maxConcurrent: 1 } : {}),
    };
    const gates = [await fleet.member(options), await fleet.member(options)];
    let [active, peak] = [0, 0];
    const calls = Array.from({ length: 6 }, (_, at) =>
      gates[at % 2]?.run(
        async () => {
          peak = Math.max(peak, ++active);
          await sleep(5);
          active--;
        },
        { tenant: 'a' },
      ),
    );
    await Promise.all(calls);
    expect(peak).toBe(1);
  });

  it('share permits, below which an adaptive limit of each process may be lower', async () => {
    await using fleet = new Fleet(server.port);
    const options = { name: 'permits', maxConcurrent: 3 };
    const [one, two] = [
      await fleet.member(options),
      await fleet.member({ ...options, adaptive: { initial: 1, min: 1, max: 1 } } as never),
    ];
    let [all, adaptive, peak, adaptivePeak] = [0, 0, 0, 0];
    const call = (gate: ServiceGate) =>
      gate.run(async () => {
        peak = Math.max(peak, ++all);
        if (gate === two) adaptivePeak = Math.max(adaptivePeak, ++adaptive);
        await sleep(20);
        all--;
        if (gate === two) adaptive--;
      });
    await Promise.all([one, two].flatMap((gate) => Array.from({ length: 10 }, () => call(gate))));
    expect(peak).toBe(3);
    expect(adaptivePeak).toBe(1);
  });

  it('exceed no window while processes stall and die, and go on using it', async () => {
    const rate = { limit: 20, perMs: 1_000 };
    const sharedRate = { limit: 30, perMs: 1_000 };
    const options = { name: 'referee', keys: ['key-one', 'key-two'], rate: [rate], sharedRate: [sharedRate] };
    await using fleet = new Processes(server.port, options, 10);
    for (let i = 0; i < 5; i++) await fleet.add();
    await until(() => new Set(fleet.starts.map(({ key }) => key)).size === 2);
    await sleep(2_000);
    const [stalls, dies, stallsLong] = fleet.processes as [ChildProcess, ChildProcess, ChildProcess];
    stalls.kill('SIGSTOP');
    await sleep(400);
    stalls.kill('SIGCONT');
    dies.kill('SIGKILL');
    stallsLong.kill('SIGSTOP');
    await sleep(1_500);
    stallsLong.kill('SIGCONT');
    await fleet.add();
    const seen = fleet.starts.length;
    const living = fleet.processes.filter((process) => process !== dies);
    await until(() => {
      const started = new Set(fleet.starts.slice(seen).map((start) => start.process));
      return living.every((process) => started.has(process)) && fleet.starts.length > seen + 60;
    });
    // An unhandled rejection would have ended its process.
    for (const { exitCode, signalCode } of living) expect([exitCode, signalCode]).toEqual([null, null]);
    for (const key of ['key-one', 'key-two']) referee(rate, fleet.times(key));
    referee(sharedRate, fleet.times());
  });
});
