import { getEventListeners } from 'node:events';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { PipelinePoolError } from '../../src/errors.js';
import { LifecycleHooks } from '../../src/hooks/lifecycle-hooks.js';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import type { AcquireOptions, Permit } from '../../src/limiter/limiter.js';
import { turn } from '../limiter/event-loop.js';
import { LimiterModel, type ModelOutcome, type ModelRequest } from './limiter-model.js';

const RUNS = process.env.SOAK === 'full' ? 50_000 : 4_000;
const AT_MOST_MS = 30 * RUNS;
const SIGNALS = 3;

const request = fc.record(
  {
    weight: fc.integer({ min: 1, max: 5 }),
    priority: fc.integer({ min: -1, max: 1 }),
    tenant: fc.constantFrom('a', 'b', 'c'),
    signal: fc.nat({ max: SIGNALS - 1 }),
    timeoutMs: fc.integer({ min: 0, max: 20 }),
  },
  { requiredKeys: [] },
);

/** One step. Indices are taken modulo what there is at that moment. */
const step = fc.oneof(
  { weight: 60, arbitrary: fc.record({ do: fc.constant('acquire' as const), request }) },
  { weight: 20, arbitrary: fc.record({ do: fc.constant('run' as const), request }) },
  {
    weight: 15,
    arbitrary: fc.record({ do: fc.constant('tryAcquire' as const), weight: fc.integer({ min: 1, max: 5 }) }),
  },
  { weight: 40, arbitrary: fc.record({ do: fc.constant('release' as const), index: fc.nat({ max: 20 }) }) },
  {
    weight: 10,
    arbitrary: fc.record({ do: fc.constant('releaseAgain' as const), index: fc.nat({ max: 20 }) }),
  },
  { weight: 15, arbitrary: fc.record({ do: fc.constant('finish' as const), index: fc.nat({ max: 20 }) }) },
  {
    weight: 15,
    arbitrary: fc.record({ do: fc.constant('abort' as const), signal: fc.nat({ max: SIGNALS - 1 }) }),
  },
  {
    weight: 10,
    arbitrary: fc.record({ do: fc.constant('renew' as const), signal: fc.nat({ max: SIGNALS - 1 }) }),
  },
  {
    weight: 15,
    arbitrary: fc.record({ do: fc.constant('advance' as const), ms: fc.integer({ min: 1, max: 15 }) }),
  },
  {
    weight: 10,
    arbitrary: fc.record({ do: fc.constant('resize' as const), to: fc.integer({ min: 1, max: 6 }) }),
  },
  { weight: 5, arbitrary: fc.record({ do: fc.constant('pause' as const) }) },
  { weight: 10, arbitrary: fc.record({ do: fc.constant('resume' as const) }) },
  {
    weight: 20,
    arbitrary: fc.record({ do: fc.constant('settle' as const), microtasks: fc.integer({ min: 0, max: 6 }) }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('close' as const), drain: fc.boolean() }) },
);

type Step = typeof step extends fc.Arbitrary<infer S> ? S : never;

const setting = fc.record({
  maxConcurrent: fc.integer({ min: 1, max: 6 }),
  maxQueue: fc.constantFrom(Number.POSITIVE_INFINITY, 0, 1, 3),
  heard: fc.boolean(),
});

type Setting = typeof setting extends fc.Arbitrary<infer S> ? S : never;

/** A limiter and its model, taken through the same steps. */
class Pair {
  readonly limiter: ConcurrencyLimiter;
  readonly model: LimiterModel;
  readonly #signals = Array.from({ length: SIGNALS }, () => new AbortController());
  /** Every signal there ever was. */
  readonly #allSignals = new Set<AbortSignal>();
  readonly #permits = new Map<number, Permit>();
  readonly #spent: Permit[] = [];
  readonly #running = new Map<number, { readonly weight: number; readonly end: () => void }>();
  readonly #outcomes = new Map<number, ModelOutcome | string>();
  readonly #grantedAfterWaiting: number[] = [];
  readonly #ends: Promise<unknown>[] = [];
  #requests = 0;

  constructor({ maxConcurrent, maxQueue, heard }: Setting) {
    const hooks = new LifecycleHooks();
    if (heard) {
      for (const event of [
        'permit:queued',
        'permit:acquired',
        'permit:released',
        'permit:rejected',
      ] as const) {
        hooks.on(event, () => {
          throw new Error('a listener that fails');
        });
      }
    }
    const bound = Number.isFinite(maxQueue) ? { maxQueue } : {};
    this.limiter = new ConcurrencyLimiter({ maxConcurrent, hooks, ...bound });
    this.model = new LimiterModel(maxConcurrent, maxQueue);
  }

  async take(given: Step): Promise<void> {
    const { limiter, model } = this;
    switch (given.do) {
      case 'acquire':
        this.#acquire(given.request);
        break;
      case 'run':
        this.#run(given.request);
        break;
      case 'tryAcquire':
        this.#tryAcquire(given.weight);
        break;
      case 'release': {
        const held = at([...this.#permits], given.index);
        if (held !== undefined) this.#release(held);
        break;
      }
      case 'releaseAgain':
        at(this.#spent, given.index)?.release();
        break;
      case 'finish': {
        const running = at([...this.#running], given.index);
        if (running !== undefined) await this.#finish(running);
        break;
      }
      case 'abort':
        this.#signals[given.signal]?.abort('left');
        model.abort(given.signal);
        break;
      case 'renew':
        this.#signals[given.signal] = new AbortController();
        model.renew(given.signal);
        // Those who wait with the old one can no longer be aborted.
        model.waiting = model.waiting.map((one) =>
          one.signal === given.signal ? { ...one, signal: -1 } : one,
        );
        break;
      case 'advance':
        vi.advanceTimersByTime(given.ms);
        model.advance(given.ms);
        break;
      case 'resize':
        limiter.maxConcurrent = given.to;
        model.resize(given.to);
        break;
      case 'pause':
        limiter.pause();
        model.pause();
        break;
      case 'resume':
        limiter.resume();
        model.resume();
        break;
      case 'settle':
        for (let i = 0; i < given.microtasks; i++) await undefined;
        break;
      case 'close':
        this.#ends.push(limiter.close({ drain: given.drain }));
        model.close(given.drain);
        break;
    }
  }

  /** What must hold after every step. */
  checkCounts(): void {
    const { limiter, model } = this;
    expect(limiter.stats()).toEqual({
      maxConcurrent: model.maxConcurrent,
      active: model.active,
      queued: model.waiting.length,
      acquired: model.acquired,
      rejected: model.rejected,
      paused: model.paused,
      closed: model.state !== 'open',
    });
    // Whoever was granted resumes in the order of the grants, though maybe not yet.
    expect(this.#grantedAfterWaiting).toEqual(
      model.grantedAfterWaiting.slice(0, this.#grantedAfterWaiting.length),
    );
  }

  /** What must hold once everybody has heard what became of it. */
  async checkOutcomes(): Promise<void> {
    await turn();
    expect(this.#grantedAfterWaiting).toEqual(this.model.grantedAfterWaiting);
    expect(this.#outcomes).toEqual(this.model.outcomes);
  }

  /** Gives everything back, and sees that it is all there. */
  async bringToRest(): Promise<void> {
    const { limiter, model } = this;
    limiter.resume();
    model.resume();
    await turn();
    while (this.#permits.size + this.#running.size > 0) {
      for (const held of [...this.#permits]) this.#release(held);
      for (const running of [...this.#running]) await this.#finish(running);
      this.checkCounts();
      await this.checkOutcomes();
    }
    await Promise.all([limiter.onIdle(), ...this.#ends]);
    expect(limiter.stats()).toMatchObject({ active: 0, queued: 0 });
    expect(vi.getTimerCount()).toBe(0);
    for (const signal of this.#allSignals) expect(getEventListeners(signal, 'abort')).toHaveLength(0);
    if (model.state === 'open') {
      limiter.tryAcquire({ weight: limiter.maxConcurrent })?.release();
      expect(limiter.stats().acquired).toBe(model.acquired + 1);
    }
  }

  #acquire(given: Partial<ModelRequest>): void {
    const { request, options } = this.#prepare(given);
    const granted = this.#tellModel(request);
    this.limiter.acquire(options).then(
      (permit) => {
        this.#permits.set(request.id, permit);
        granted();
      },
      (error: unknown) => this.#outcomes.set(request.id, outcomeOf(error)),
    );
  }

  #run(given: Partial<ModelRequest>): void {
    // Its abort after the grant is told some microtasks later, which is tested elsewhere.
    const { request, options } = this.#prepare({ ...given, signal: undefined });
    const granted = this.#tellModel(request);
    const work = () =>
      new Promise<void>((end) => {
        this.#running.set(request.id, { weight: request.weight, end });
        granted();
      });
    this.limiter
      .run(work, options)
      .catch((error: unknown) => this.#outcomes.set(request.id, outcomeOf(error)));
  }

  #prepare(given: Partial<ModelRequest>): { request: ModelRequest; options: AcquireOptions | undefined } {
    const { weight, priority, tenant, signal, timeoutMs } = given;
    const controller = signal === undefined ? undefined : this.#signals[signal];
    if (controller !== undefined) this.#allSignals.add(controller.signal);
    const request = {
      id: this.#requests++,
      weight: weight ?? 1,
      priority: priority ?? 0,
      tenant,
      signal,
      timeoutMs,
    };
    const plain = Object.values(given).every((value) => value === undefined);
    return {
      request,
      options: plain ? undefined : { weight, priority, tenant, timeoutMs, signal: controller?.signal },
    };
  }

  /** Asks the model, and gives what is to be called when the limiter has granted the same. */
  #tellModel(request: ModelRequest): () => void {
    const atOnce = this.model.request(request);
    return () => {
      this.#outcomes.set(request.id, 'granted');
      if (!atOnce) this.#grantedAfterWaiting.push(request.id);
    };
  }

  #tryAcquire(weight: number): void {
    if (weight > this.model.maxConcurrent) {
      expect(() => this.limiter.tryAcquire({ weight })).toThrow(RangeError);
      return;
    }
    const permit = this.limiter.tryAcquire(weight === 1 ? undefined : { weight });
    const { request } = this.#prepare({ weight });
    expect(permit !== undefined).toBe(this.model.tryRequest(request));
    if (permit === undefined) return;
    this.#permits.set(request.id, permit);
    this.#outcomes.set(request.id, 'granted');
  }

  #release([id, permit]: [number, Permit]): void {
    this.#permits.delete(id);
    this.#spent.push(permit);
    permit.release();
    this.model.release(permit.weight);
  }

  async #finish([id, { weight, end }]: [
    number,
    { readonly weight: number; readonly end: () => void },
  ]): Promise<void> {
    this.#running.delete(id);
    end();
    await turn();
    this.model.release(weight);
  }
}

const at = <T>(list: readonly T[], index: number): T | undefined => list[index % Math.max(1, list.length)];

const CODES: Readonly<Record<string, ModelOutcome>> = {
  ERR_ACQUIRE_TIMEOUT: 'timeout',
  ERR_LIMITER_CLOSED: 'closed',
  ERR_QUEUE_FULL: 'queue-full',
};

function outcomeOf(error: unknown): ModelOutcome | string {
  if (error === 'left') return 'aborted';
  if (error instanceof RangeError) return 'too heavy';
  return error instanceof PipelinePoolError ? (CODES[error.code] ?? error.code) : String(error);
}

describe('ConcurrencyLimiter against its model', () => {
  beforeAll(async () => {
    vi.useFakeTimers();
    await turn();
  });
  afterAll(async () => {
    vi.useRealTimers();
    await turn();
  });

  it(
    'counts and grants as the model does after every step, and at rest has everything back',
    async () => {
      const property = fc.asyncProperty(
        setting,
        fc.array(step, { maxLength: 60, size: 'max' }),
        async (given, steps) => {
          const pair = new Pair(given);
          for (const one of steps) {
            await pair.take(one);
            pair.checkCounts();
          }
          await pair.checkOutcomes();
          await pair.bringToRest();
        },
      );
      // What a failed run leaves behind must not fail those that look for a smaller one.
      property.beforeEach(() => void vi.clearAllTimers());
      await fc.assert(property, { numRuns: RUNS });
    },
    AT_MOST_MS,
  );
});

describe('ConcurrencyLimiter under any order of ends and aborts', () => {
  const job = fc.record({
    weight: fc.integer({ min: 1, max: 4 }),
    priority: fc.integer({ min: 0, max: 1 }),
    tenant: fc.constantFrom('a', 'b', undefined),
    ends: fc.constantFrom('ok' as const, 'failed' as const, 'thrown' as const),
    aborted: fc.boolean(),
  });

  it(
    'holds at most the limit, and at rest nothing is held and nobody waits',
    async () => {
      const property = fc.asyncProperty(
        fc.scheduler(),
        fc.integer({ min: 1, max: 4 }),
        fc.array(job, { minLength: 1, maxLength: 12 }),
        async (scheduler, maxConcurrent, jobs) => {
          const limiter = new ConcurrencyLimiter({ maxConcurrent });
          let held = 0;
          const all = jobs.map(async ({ weight, priority, tenant, ends, aborted }, i) => {
            const controller = new AbortController();
            const { signal } = controller;
            const work = async () => {
              held += weight;
              expect(held).toBeLessThanOrEqual(maxConcurrent);
              expect(limiter.activeCount).toBeGreaterThanOrEqual(held);
              try {
                await scheduler.schedule(Promise.resolve(), `end of ${i}`);
                if (ends === 'failed') throw new Error('failed');
                return i;
              } finally {
                held -= weight;
              }
            };
            const thrower = () => {
              throw new Error('thrown');
            };
            if (aborted)
              void scheduler
                .schedule(Promise.resolve(), `abort of ${i}`)
                .then(() => controller.abort('left'));
            try {
              const options = { weight, priority, tenant, signal };
              return await limiter.run(ends === 'thrown' ? thrower : work, options);
            } catch (error) {
              return error instanceof Error
                ? error.constructor === RangeError
                  ? 'too heavy'
                  : error.message
                : error;
            }
          });
          await scheduler.waitFor(Promise.all(all));
          const outcomes = await Promise.all(all);
          jobs.forEach(({ weight, ends, aborted }, i) => {
            const usual = weight > maxConcurrent ? 'too heavy' : ends === 'ok' ? i : ends;
            expect(aborted ? [usual, 'left'] : [usual]).toContain(outcomes[i]);
          });
          expect(held).toBe(0);
          expect(limiter.stats()).toMatchObject({ active: 0, queued: 0 });
          expect(limiter.tryAcquire({ weight: maxConcurrent })).toBeDefined();
        },
      );
      await fc.assert(property, { numRuns: RUNS / 4 });
    },
    AT_MOST_MS,
  );
});
