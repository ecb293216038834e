import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { PipelinePoolError } from '../../src/errors.js';
import type { Lease } from '../../src/pool/lease.js';
import type { PipelinePoolOptions } from '../../src/pool/options.js';
import { PipelinePool } from '../../src/pool/pipeline-pool.js';
import { endOfTurn } from '../support/promises.js';
import { sizeOf } from '../support/soak.js';
import { VirtualTime } from '../support/virtual-time.js';

/** What may be done to a pool at any time. Numbers choose among what exists. */
type Command =
  | {
      readonly do: 'acquire';
      readonly priority: number;
      readonly timeoutMs: number | undefined;
      readonly instanceId: number | undefined;
    }
  | { readonly do: 'release' | 'discard' | 'abort'; readonly which: number }
  | { readonly do: 'resize'; readonly size: number }
  | { readonly do: 'pass'; readonly ms: number }
  | { readonly do: 'settle'; readonly count: number }
  | { readonly do: 'refresh' | 'pause' | 'resume' | 'drain' | 'close' };

const which = fc.nat(7);
const command: fc.Arbitrary<Command> = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.record({
      do: fc.constant('acquire' as const),
      priority: fc.constantFrom(0, 0, 0, 1),
      timeoutMs: fc.option(fc.constantFrom(0, 5, 40), { nil: undefined, freq: 3 }),
      instanceId: fc.option(fc.integer({ min: 1, max: 6 }), { nil: undefined, freq: 6 }),
    }),
  },
  { weight: 6, arbitrary: fc.record({ do: fc.constant('release' as const), which }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('discard' as const), which }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('abort' as const), which }) },
  {
    weight: 1,
    arbitrary: fc.record({ do: fc.constant('resize' as const), size: fc.integer({ min: 1, max: 4 }) }),
  },
  {
    weight: 4,
    arbitrary: fc.record({ do: fc.constant('pass' as const), ms: fc.constantFrom(1, 10, 60, 2_000) }),
  },
  {
    weight: 8,
    arbitrary: fc.record({ do: fc.constant('settle' as const), count: fc.integer({ min: 1, max: 4 }) }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constantFrom('refresh' as const, 'pause' as const) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('resume' as const) }) },
);

/** Ends the life of a pool, in the middle of everything. */
const ending: fc.Arbitrary<{ readonly at: number; readonly steps: readonly Command[] }> = fc.record({
  at: fc.nat(60),
  steps: fc.array(fc.record({ do: fc.constantFrom('drain' as const, 'close' as const) }), { maxLength: 2 }),
});

interface Request {
  readonly arrival: number;
  readonly priority: number;
  readonly wants: number | undefined;
  readonly controller: AbortController;
  state: 'waiting' | 'held' | 'released' | 'rejected';
  lease?: Lease<number>;
}

/** A pool whose callbacks end when, and as, fast-check says; and what is known of it from outside. */
class Model {
  readonly pool: PipelinePool<number>;
  readonly requests: Request[] = [];
  readonly faults: string[] = [];
  alive = 0;
  closings: Promise<unknown>[] = [];
  readonly #scheduler: fc.Scheduler;
  readonly #fails: () => boolean;
  readonly #isFifo: boolean;
  /** Requests that still waited when a later one was served: they must be settled in the same turn. */
  readonly #suspects: Request[] = [];
  #lastAlive = 0;

  constructor(
    scheduler: fc.Scheduler,
    fails: () => boolean,
    options: Partial<PipelinePoolOptions<number>>,
    callbacks: readonly ('validate' | 'prepare' | 'reset')[],
  ) {
    this.#scheduler = scheduler;
    this.#fails = fails;
    // Instances that are prepared side by side are ready in any order.
    this.#isFifo = !callbacks.includes('prepare');
    const call = (stage: string): Promise<void> => this.#call(stage);
    this.pool = new PipelinePool<number>({
      size: 2,
      create: async ({ instanceId }) => {
        this.alive++;
        this.check();
        try {
          await call('create');
        } catch (error) {
          this.alive--;
          throw error;
        }
        return instanceId;
      },
      destroy: async () => {
        try {
          await call('destroy');
        } finally {
          this.alive--;
        }
      },
      ...(callbacks.includes('validate')
        ? { validate: () => call('validate').then(() => true), validateAfterIdleMs: 5 }
        : {}),
      ...(callbacks.includes('prepare') ? { prepare: () => call('prepare') } : {}),
      ...(callbacks.includes('reset') ? { reset: () => call('reset') } : {}),
      // No deadline is met here: the pool under a callback that outlives it is the fault matrix's matter.
      createTimeoutMs: 1e9,
      validateTimeoutMs: 1e9,
      prepareTimeoutMs: 1e9,
      resetTimeoutMs: 1e9,
      destroyTimeoutMs: 1e9,
      createRetry: { baseMs: 5, maxMs: 20 },
      ...options,
    });
  }

  async do(command: Command): Promise<void> {
    switch (command.do) {
      case 'acquire':
        this.#acquire(command);
        break;
      case 'release':
      case 'discard': {
        const held = this.requests.filter(({ state }) => state === 'held');
        const request = held[command.which % held.length];
        if (request !== undefined) this.release(request, command.do === 'discard');
        break;
      }
      case 'abort': {
        const waiting = this.requests.filter(({ state }) => state === 'waiting');
        waiting[command.which % waiting.length]?.controller.abort(new Error('aborted'));
        break;
      }
      case 'resize':
        this.pool.resize(Math.max(command.size, this.pool.stats().min, 1));
        break;
      case 'refresh':
        this.pool.refresh();
        break;
      case 'pause':
        this.pool.pause();
        break;
      case 'resume':
        this.pool.resume();
        break;
      case 'settle':
        for (let i = 0; i < command.count && this.#scheduler.count() > 0; i++)
          await this.#scheduler.waitOne();
        break;
      case 'pass':
        await time.pass(command.ms);
        break;
      case 'drain':
        this.closings.push(this.pool.drain());
        break;
      case 'close':
        this.closings.push(this.pool.close({ timeoutMs: 100 }));
        break;
    }
    await endOfTurn();
    this.check();
    const overtaken = this.#suspects.splice(0).filter(({ state }) => state === 'waiting');
    if (overtaken.length > 0) this.faults.push(`${overtaken.length} overtaken`);
  }

  release(request: Request, discard = false): void {
    request.state = 'released';
    void request.lease?.release({ discard });
  }

  check(): void {
    const stats = this.pool.stats();
    const held = this.requests.filter(({ state, lease }) => state === 'held' && lease?.isHeld);
    const fault = (what: string): void => {
      this.faults.push(`${what}: ${JSON.stringify(stats)}`);
    };
    if (this.alive > Math.max(stats.size, this.#lastAlive)) fault(`${this.alive} alive`);
    this.#lastAlive = this.alive;
    if (new Set(held.map(({ lease }) => lease?.instanceId)).size !== held.length) fault('two holders');
    const sum =
      stats.creating + stats.idle + stats.readying + stats.leased + stats.resetting + stats.destroying;
    if (sum !== stats.live) fault('the parts do not add up');
    if (stats.acquired !== stats.released + stats.revoked + stats.leased) fault('a lease is lost');
  }

  #call(stage: string): Promise<void> {
    const fails = this.#fails();
    return this.#scheduler.schedule(Promise.resolve(), stage).then(() => {
      if (fails) throw new Error(`${stage} failed`);
    });
  }

  #acquire({ priority, timeoutMs, instanceId }: Command & { do: 'acquire' }): void {
    const request: Request = {
      arrival: this.requests.length,
      priority,
      wants: instanceId,
      controller: new AbortController(),
      state: 'waiting',
    };
    this.requests.push(request);
    const given = this.pool.acquire({
      priority,
      signal: request.controller.signal,
      ...(timeoutMs === undefined ? {} : { timeoutMs }),
      ...(instanceId === undefined ? {} : { instanceId }),
    });
    given.then(
      (lease) => {
        if (request.state !== 'waiting') this.faults.push('settled twice');
        request.state = 'held';
        request.lease = lease;
        if (request.wants !== undefined && lease.instanceId !== request.wants)
          this.faults.push('another instance');
        if (this.#isFifo && request.wants === undefined) this.#checkOrder(request);
      },
      (error: unknown) => {
        if (request.state !== 'waiting') this.faults.push('settled twice');
        request.state = 'rejected';
        if (!(error instanceof PipelinePoolError) && error !== request.controller.signal.reason) {
          this.faults.push(`rejected with ${String(error)}`);
        }
      },
    );
  }

  #checkOrder({ arrival, priority }: Request): void {
    for (const other of this.requests) {
      if (other.state !== 'waiting' || other.wants !== undefined || other.controller.signal.aborted) continue;
      const isBefore = other.priority > priority || (other.priority === priority && other.arrival < arrival);
      if (isBefore) this.#suspects.push(other);
    }
  }
}

let time: VirtualTime;
beforeEach(() => {
  time = new VirtualTime();
  time.install();
});
afterEach(() => {
  time.restore();
});

const settings: fc.Arbitrary<Partial<PipelinePoolOptions<number>>> = fc.record(
  {
    size: fc.integer({ min: 1, max: 3 }),
    min: fc.constantFrom(0, 1),
    minIdle: fc.constantFrom(0, 1),
    onCreateFailure: fc.constantFrom('reject' as const, 'retry' as const),
    maxUses: fc.constantFrom(1, 2),
    maxQueue: fc.constantFrom(0, 3),
    maxLeaseMs: fc.constantFrom(50),
    maxLifetimeMs: fc.constantFrom(200),
    idleTimeoutMs: fc.constantFrom(30),
    createConcurrency: fc.constantFrom(1),
  },
  { requiredKeys: ['size'] },
);

const callbacks = fc.subarray(['validate', 'prepare', 'reset'] as const);

async function runModel(model: Model, commands: readonly Command[], scheduler: fc.Scheduler): Promise<void> {
  for (const step of commands) await model.do(step);
  model.pool.resume();
  // Every request ends: holders release, the others wait for their turn.
  for (let round = 0; round < 200; round++) {
    for (const request of model.requests) if (request.state === 'held') model.release(request);
    while (scheduler.count() > 0) await scheduler.waitOne();
    await time.pass(30);
    model.check();
    if (model.requests.every(({ state }) => state === 'released' || state === 'rejected')) break;
  }
  expect(model.requests.filter(({ state }) => state === 'waiting')).toEqual([]);
  expect(model.pool.stats()).toMatchObject({ queued: 0, leased: 0 });

  let isClosed = false;
  const closing = model.pool.close({ timeoutMs: 100 }).then(() => {
    isClosed = true;
  });
  for (let round = 0; round < 20 && !isClosed; round++) {
    while (scheduler.count() > 0) await scheduler.waitOne();
    await time.pass(50);
  }
  await closing;
  await Promise.all(model.closings);
  expect(model.pool.stats()).toMatchObject({ live: 0, idle: 0, state: 'closed' });
  expect(model.alive).toBe(0);
  expect(time.pending).toBe(0);
  expect(model.faults).toEqual([]);
}

const RUNS = sizeOf('sequences of calls to a pool', 400, 5_000);

describe('a pool under any sequence of calls, with callbacks that end in any order', () => {
  it('keeps its invariants, serves in order, and becomes idle', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.scheduler(),
        fc.array(command, { minLength: 5, maxLength: 60 }),
        ending,
        settings,
        callbacks,
        fc.infiniteStream(fc.integer({ min: 0, max: 9 })),
        fc.constantFrom(0, 0, 2, 5),
        async (scheduler, commands, end, options, used, chance, failsBelow) => {
          const fails = (): boolean => chance.next().value < failsBelow;
          const min = Math.min(options.min ?? 0, options.size ?? 2);
          const model = new Model(scheduler, fails, { ...options, min }, used);
          await runModel(model, commands.toSpliced(end.at, 0, ...end.steps), scheduler);
        },
      ),
      { numRuns: RUNS, endOnFailure: process.env.CI !== undefined },
    );
  });
});
