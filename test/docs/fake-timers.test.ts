import { mock } from 'node:test';
import FakeTimers from '@sinonjs/fake-timers';
import { createPipelineManager, PipelinePool, ServiceGate } from 'pipeline-pool';
import { afterEach, describe, expect, it, vi } from 'vitest';

// Taken before anything is faked.
const realImmediate = setImmediate;
const settled = (): Promise<void> => new Promise((resolve) => realImmediate(resolve));

interface Clock {
  readonly advance: (ms: number) => Promise<unknown>;
  readonly stop: () => void;
}

const WITHOUT_CLOCK = ['setTimeout', 'clearTimeout', 'setInterval', 'clearInterval', 'Date'] as const;
/**
 * What Jest and Sinon fake by default, with the same library, except `nextTick` and `queueMicrotask`: a message to this
 * process that arrives while `nextTick` is faked is lost, and the test runner would wait for it forever. The guide's
 * snippet, which fakes them as well, runs in a thread of its own.
 */
const JEST_OR_SINON = [
  ...WITHOUT_CLOCK,
  ...(['setImmediate', 'clearImmediate', 'hrtime', 'performance'] as const),
];

const vitest = (toFake?: Parameters<typeof vi.useFakeTimers>[0]): Clock => {
  vi.useFakeTimers(toFake);
  return { advance: (ms) => vi.advanceTimersByTimeAsync(ms), stop: () => vi.useRealTimers() };
};
const jestOrSinon = (): Clock => {
  const clock = FakeTimers.install({ toFake: JEST_OR_SINON as never });
  return { advance: (ms) => clock.tickAsync(ms), stop: () => clock.uninstall() };
};

/** As the guide does it. */
const nodeTest = (): Clock => {
  mock.timers.enable({ apis: ['setTimeout', 'setInterval', 'Date'] });
  mock.method(performance, 'now', () => Date.now());
  const advance = async (ms: number): Promise<void> => {
    await settled();
    for (let left = ms; left > 0; left -= 10_000) {
      mock.timers.tick(Math.min(left, 10_000));
      await settled();
    }
  };
  const stop = (): void => {
    mock.reset();
    mock.timers.reset();
  };
  return { advance, stop };
};

let clock: Clock | undefined;
afterEach(() => clock?.stop());

describe.each<[string, () => Clock]>([
  ['vitest', () => vitest()],
  ['vitest with toFake', () => vitest({ toFake: [...WITHOUT_CLOCK, 'performance'] })],
  ['Jest and Sinon', jestOrSinon],
  ['node:test', nodeTest],
])('Under the fake timers of %s', (_, install) => {
  it('a rate window ends', async () => {
    clock = install();
    const gate = new ServiceGate({ name: 'search', rate: [{ limit: 1, perMs: 60_000 }] });
    let calls = 0;
    const all = Promise.all([1, 2].map(() => gate.run(async () => ++calls)));
    await clock.advance(59_999);
    await settled();
    expect(calls).toBe(1);
    await clock.advance(1);
    await all;
    expect(calls).toBe(2);
  });

  it('a cooldown ends', async () => {
    clock = install();
    const gate = new ServiceGate({ name: 'search', keys: ['the-only-key'] });
    const answers = [
      new Response('', { status: 429, headers: { 'retry-after': '30' } }),
      new Response('found'),
    ];
    let calls = 0;
    const result = gate.run(async () => answers[calls++]);
    await clock.advance(29_999);
    await settled();
    expect(calls).toBe(1);
    await clock.advance(1);
    expect((await result)?.status).toBe(200);
  });

  it('an idle instance is destroyed', async () => {
    clock = install();
    const pool = new PipelinePool({ size: 1, create: () => ({}), idleTimeoutMs: 60_000 });
    await (await pool.acquire()).release();
    expect(pool.stats().live).toBe(1);
    await clock.advance(70_000);
    await settled();
    expect(pool.stats().live).toBe(0);
    await pool.close();
  });

  it('a request times out', async () => {
    clock = install();
    const manager = createPipelineManager({
      config: { poolSize: 1, maxConcurrentRequests: 1, abortGraceMs: 0 },
      create: () => ({}),
    });
    const result = manager.run('task', () => new Promise(() => {}), { timeoutMs: 60_000 });
    const failed = expect(result).rejects.toMatchObject({ code: 'ERR_REQUEST_TIMEOUT' });
    await settled();
    await clock.advance(60_000);
    await failed;
  });
});

describe('Without a fake performance.now', () => {
  it('a rate window does not end', async () => {
    clock = vitest({ toFake: [...WITHOUT_CLOCK] });
    const gate = new ServiceGate({ name: 'search', rate: [{ limit: 1, perMs: 60_000 }] });
    let calls = 0;
    for (let i = 0; i < 2; i++) void gate.run(async () => ++calls).catch(() => {});
    await clock.advance(120_000);
    await settled();
    expect(calls).toBe(1);
    await gate.close();
  });

  it('a rate window of a gate with its own clock ends', async () => {
    clock = vitest({ toFake: [...WITHOUT_CLOCK] });
    const gate = new ServiceGate({
      name: 'search',
      rate: [{ limit: 1, perMs: 60_000 }],
      now: () => Date.now(),
    });
    let calls = 0;
    const all = Promise.all([1, 2].map(() => gate.run(async () => ++calls)));
    await clock.advance(59_999);
    await settled();
    expect(calls).toBe(1);
    await clock.advance(1);
    await all;
    expect(calls).toBe(2);
  });

  it('a pool with a clock of its own destroys idle instances', async () => {
    clock = vitest({ toFake: [...WITHOUT_CLOCK] });
    const pool = new PipelinePool({
      size: 1,
      create: () => ({}),
      idleTimeoutMs: 60_000,
      now: () => Date.now(),
    });
    await (await pool.acquire()).release();
    await clock.advance(70_000);
    await settled();
    expect(pool.stats().live).toBe(0);
    await pool.close();
  });
});
