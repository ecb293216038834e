import { getEventListeners } from 'node:events';
import type fc from 'fast-check';
import { expect, vi } from 'vitest';
import { PipelinePoolError } from '../../src/errors.js';
import { LifecycleHooks } from '../../src/hooks/lifecycle-hooks.js';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import type { AcquireOptions, Permit, RunContext } from '../../src/limiter/limiter.js';
import { FairOrder } from './fair-order.js';
import { endOfTurn } from './promises.js';

/** A request as the model sees it. */
export interface ModelRequest {
  readonly id: number;
  readonly weight: number;
  readonly priority: number;
  readonly tenant: string | undefined;
  /** Which of the shared signals it has. */
  readonly signal: number | undefined;
  readonly timeoutMs: number | undefined;
}

interface Waiting extends ModelRequest {
  readonly deadlineMs: number;
}

/** What became of a request: a permit, or the reason why not. */
export type ModelOutcome = 'granted' | 'aborted' | 'timeout' | 'closed' | 'queue-full' | 'too heavy';

/**
 * What a ConcurrencyLimiter guarantees with `fairBy: 'requests'`, as plainly as possible: arrays, searched from the start each time. It has no
 * promises, so its state is at once what the limiter's must be at the end of the step.
 */
export class LimiterModel {
  /** The highest limit so far. */
  maxWeight: number;
  active = 0;
  acquired = 0;
  rejected = 0;
  paused = false;
  isOpen = true;
  waiting: Waiting[] = [];
  readonly outcomes = new Map<number, ModelOutcome>();
  /** Those who waited and were granted, in the order of the grants. */
  readonly grantedAfterWaiting: number[] = [];
  readonly #aborted = new Set<number>();
  #order = new FairOrder();
  #nowMs = 0;

  constructor(
    public maxConcurrent: number,
    public maxQueue: number,
    readonly acquireTimeoutMs?: number,
  ) {
    this.maxWeight = maxConcurrent;
  }

  /** What the limiter must count. */
  stats() {
    return {
      maxConcurrent: this.maxConcurrent,
      active: this.active,
      queued: this.waiting.length,
      acquired: this.acquired,
      rejected: this.rejected,
      paused: this.paused && (this.isOpen || this.waiting.length > 0),
      closed: !this.isOpen,
    };
  }

  /** A model in the same state, without outcomes. */
  clone(): LimiterModel {
    const copy = new LimiterModel(this.maxConcurrent, this.maxQueue, this.acquireTimeoutMs);
    copy.active = this.active;
    copy.maxWeight = this.maxWeight;
    copy.paused = this.paused;
    copy.isOpen = this.isOpen;
    copy.waiting = [...this.waiting];
    for (const signal of this.#aborted) copy.#aborted.add(signal);
    copy.#order = this.#order.clone();
    copy.#nowMs = this.#nowMs;
    return copy;
  }

  /** Asks for a permit, waiting for it if need be. Says whether it has it at once. */
  request(request: ModelRequest): boolean {
    const { id, weight, priority, tenant, signal, timeoutMs = this.acquireTimeoutMs } = request;
    // Wrong options are not a request: they do not count as rejected.
    if (weight > this.maxWeight) {
      this.outcomes.set(id, 'too heavy');
      return false;
    }
    if (signal !== undefined && this.#aborted.has(signal)) {
      this.#reject(id, 'aborted');
      return false;
    }
    if (tenant !== undefined) this.#order.isShared = true;
    if (this.#isFree(weight, priority)) this.#grantFree(request);
    else if (!this.isOpen) this.#reject(id, 'closed');
    else if (this.waiting.length >= this.maxQueue) this.#reject(id, 'queue-full');
    else if (timeoutMs === 0) this.#reject(id, 'timeout');
    else {
      this.#order.join(request, this.waiting);
      this.waiting.push({ ...request, deadlineMs: this.#nowMs + (timeoutMs ?? Number.POSITIVE_INFINITY) });
      // It may be next, where a heavier one of another tenant has no room.
      if (this.#order.isShared) this.#admit();
    }
    return this.outcomes.get(id) === 'granted' && !this.grantedAfterWaiting.includes(id);
  }

  /** Takes a permit if that needs no waiting. Says whether it did. */
  tryRequest(request: ModelRequest): boolean {
    const free = this.waiting.length === 0 && this.#isFree(request.weight, 0);
    if (free) this.#grantFree(request);
    return free;
  }

  release(weight: number): void {
    this.active -= weight;
    this.#admit();
  }

  /** A run whose signal aborted between the grant and the start: it does not begin, and its permit comes back. */
  takeBackUnstarted(id: number, weight: number): void {
    this.outcomes.set(id, 'aborted');
    this.grantedAfterWaiting.splice(this.grantedAfterWaiting.indexOf(id), 1);
    this.release(weight);
  }

  abort(signal: number): void {
    this.#aborted.add(signal);
    for (const waiter of this.waiting.filter((one) => one.signal === signal)) {
      this.#leave(waiter);
      this.#reject(waiter.id, 'aborted');
    }
    this.#admit();
  }

  /** A new signal in place of this one: those who wait with the old one can no longer be aborted. */
  renew(signal: number): void {
    this.#aborted.delete(signal);
    this.waiting = this.waiting.map((one) => (one.signal === signal ? { ...one, signal: undefined } : one));
  }

  advance(ms: number): void {
    const untilMs = this.#nowMs + ms;
    for (;;) {
      const due = Math.min(...this.waiting.map(({ deadlineMs }) => deadlineMs));
      if (due > untilMs) break;
      const late = this.waiting.find(({ deadlineMs }) => deadlineMs === due) as Waiting;
      this.#leave(late);
      this.#reject(late.id, 'timeout');
      this.#admit();
    }
    this.#nowMs = untilMs;
  }

  resize(maxConcurrent: number): void {
    this.maxConcurrent = maxConcurrent;
    this.maxWeight = Math.max(this.maxWeight, maxConcurrent);
    this.#admit();
  }

  pause(): void {
    this.paused = true;
  }

  resume(): void {
    this.paused = false;
    this.#admit();
  }

  close(drain: boolean): void {
    this.isOpen = false;
    if (!drain) {
      for (const waiter of [...this.waiting]) {
        this.#leave(waiter);
        this.#reject(waiter.id, 'closed');
      }
    } else this.resume();
  }

  #fits(weight: number): boolean {
    return !this.paused && (this.active === 0 || this.active + weight <= this.maxConcurrent);
  }

  #isFree(weight: number, priority: number): boolean {
    return this.isOpen && this.waiting.every((one) => one.priority < priority) && this.#fits(weight);
  }

  #grant({ id, weight }: ModelRequest): void {
    this.active += weight;
    this.acquired++;
    this.outcomes.set(id, 'granted');
  }

  #grantFree(request: ModelRequest): void {
    this.#order.grantFree(request.tenant, this.waiting);
    this.#grant(request);
    // Another may be next now, and light enough.
    if (this.#order.isShared) this.#admit();
  }

  #reject(id: number, outcome: ModelOutcome): void {
    this.rejected++;
    this.outcomes.set(id, outcome);
  }

  #admit(): void {
    for (let next = this.#next(); next !== undefined && this.#fits(next.weight); next = this.#next()) {
      this.#leave(next);
      this.#order.grant(next);
      this.#grant(next);
      this.grantedAfterWaiting.push(next.id);
    }
  }

  #next(): Waiting | undefined {
    return this.#order.next(this.waiting);
  }

  #leave({ id }: Waiting): void {
    this.waiting = this.waiting.filter((one) => one.id !== id);
  }
}

/** How many signals requests share. */
export const SIGNALS = 2;

/** What a request asks for. */
export type Asked = Partial<Omit<ModelRequest, 'id'>>;

/** How a run goes. */
export interface Going {
  /** Its work answers, fails, or throws at once. */
  readonly ends: 'answered' | 'failed' | 'thrown';
  /** Whether the work ends when its signal aborts. */
  readonly honorsSignal: boolean;
  /** Whether the work gives its permit back as it begins. */
  readonly early: boolean;
}

/** One step. Indices are taken modulo what there is at that moment. */
export type Step =
  | { readonly do: 'acquire'; readonly asked: Asked }
  | { readonly do: 'run'; readonly asked: Asked; readonly going: Going }
  | { readonly do: 'tryAcquire'; readonly weight: number }
  | { readonly do: 'release' | 'releaseAgain'; readonly index: number }
  | { readonly do: 'abort' | 'scheduleAbort' | 'renew'; readonly signal: number }
  | { readonly do: 'waitOne' | 'pause' | 'resume' }
  | { readonly do: 'advance'; readonly ms: number }
  | { readonly do: 'resize'; readonly to: number }
  | { readonly do: 'settle'; readonly microtasks: number }
  | { readonly do: 'close'; readonly drain: boolean };

/** How the limiter is built. */
export interface Setting {
  readonly maxConcurrent: number;
  readonly maxQueue: number;
  readonly acquireTimeoutMs: number | undefined;
  readonly heard: boolean;
}

/** A run that has not ended. */
interface Running {
  readonly controller: AbortController | undefined;
  readonly weight: number;
  hasBegun: boolean;
}

/**
 * A limiter and its model, taken through the same steps. The ends of runs, and the aborts that are scheduled, come in the
 * order that the scheduler chooses, and the model follows in the same microtask, ahead of the limiter.
 */
export class Pair {
  readonly limiter: ConcurrencyLimiter;
  readonly model: LimiterModel;
  readonly #scheduler: fc.Scheduler;
  readonly #signals = Array.from({ length: SIGNALS }, () => new AbortController());
  /** Every signal there ever was. */
  readonly #allSignals = new Set<AbortSignal>();
  readonly #permits = new Map<number, Permit>();
  readonly #spent: Permit[] = [];
  readonly #running = new Map<number, Running>();
  /** Runs whose signal aborted between the grant and the start: their permits come back some microtasks later. */
  readonly #unstarted: [id: number, weight: number][] = [];
  readonly #outcomes = new Map<number, ModelOutcome | string>();
  readonly #grantedAfterWaiting: number[] = [];
  readonly #closes: Promise<unknown>[] = [];
  #requests = 0;

  constructor({ maxConcurrent, maxQueue, acquireTimeoutMs, heard }: Setting, scheduler: fc.Scheduler) {
    const hooks = new LifecycleHooks();
    if (heard) {
      const fail = () => {
        throw new Error('a listener that fails');
      };
      for (const event of ['queued', 'acquired', 'released', 'rejected'] as const)
        hooks.on(`permit:${event}`, fail);
    }
    const bound = Number.isFinite(maxQueue) ? { maxQueue } : {};
    this.limiter = new ConcurrencyLimiter({
      maxConcurrent,
      hooks,
      acquireTimeoutMs,
      fairBy: 'requests',
      ...bound,
    });
    this.model = new LimiterModel(maxConcurrent, maxQueue, acquireTimeoutMs);
    this.#scheduler = scheduler;
  }

  /** Takes both through a step; where it lets microtasks pass, gives the promise of its end. */
  take(step: Step): Promise<void> | undefined {
    const passing = this.#take(step);
    if (passing !== undefined) return passing.then(() => this.#check());
    return this.#check();
  }

  #take(step: Step): Promise<void> | undefined {
    const { limiter, model } = this;
    switch (step.do) {
      case 'acquire':
        this.#acquire(step.asked);
        break;
      case 'run':
        this.#run(step.asked, step.going);
        break;
      case 'tryAcquire':
        this.#tryAcquire(step.weight);
        break;
      case 'release': {
        const held = at([...this.#permits], step.index);
        if (held !== undefined) this.#release(held);
        break;
      }
      case 'releaseAgain':
        at(this.#spent, step.index)?.release();
        break;
      case 'abort':
        this.#abort(step.signal);
        // Runs that have not started hold their permits at this moment.
        this.#checkCounts();
        break;
      case 'scheduleAbort':
        void this.#schedule(`abort of ${step.signal}`).then(() => this.#abort(step.signal));
        break;
      case 'waitOne':
        return this.#scheduler.count() > 0 ? this.#scheduler.waitOne() : undefined;
      case 'renew':
        this.#signals[step.signal] = new AbortController();
        model.renew(step.signal);
        break;
      case 'advance':
        vi.advanceTimersByTime(step.ms);
        model.advance(step.ms);
        break;
      case 'resize':
        limiter.maxConcurrent = step.to;
        model.resize(step.to);
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
        return microtasks(step.microtasks);
      case 'close':
        this.#closes.push(limiter.close({ drain: step.drain }));
        model.close(step.drain);
        break;
    }
    return undefined;
  }

  /** Checks, once the permits of runs that will not start have been released. */
  #check(): Promise<void> | undefined {
    if (this.#unstarted.length > 0) return this.#takeBackUnstarted();
    this.#checkCounts();
    return undefined;
  }

  /** What must hold after every step. */
  #checkCounts(): void {
    const { limiter, model } = this;
    expect(limiter.stats()).toEqual(model.stats());
    // Those granted resume in the order of the grants, though maybe not yet.
    expect(this.#grantedAfterWaiting).toEqual(
      model.grantedAfterWaiting.slice(0, this.#grantedAfterWaiting.length),
    );
  }

  async #takeBackUnstarted(): Promise<void> {
    await endOfTurn();
    for (const [id, weight] of this.#unstarted.splice(0)) this.model.takeBackUnstarted(id, weight);
    this.#checkCounts();
  }

  /** What must hold once all promises have settled. */
  async checkOutcomes(): Promise<void> {
    await endOfTurn();
    this.#checkCounts();
    expect(this.#grantedAfterWaiting).toEqual(this.model.grantedAfterWaiting);
    expect(this.#outcomes).toEqual(this.model.outcomes);
  }

  /** Releases everything, and checks that nothing is left. */
  async releaseAll(): Promise<void> {
    const { limiter, model } = this;
    await this.take({ do: 'resume' });
    await this.checkOutcomes();
    while (this.#permits.size + this.#scheduler.count() > 0) {
      for (const held of [...this.#permits]) this.#release(held);
      await this.take({ do: 'waitOne' });
      await this.checkOutcomes();
    }
    await Promise.all([limiter.onIdle(), ...this.#closes]);
    expect(limiter.stats()).toMatchObject({ active: 0, queued: 0 });
    expect(vi.getTimerCount()).toBe(0);
    for (const signal of this.#allSignals) expect(getEventListeners(signal, 'abort')).toHaveLength(0);
    if (model.isOpen) {
      limiter.tryAcquire({ weight: limiter.maxConcurrent })?.release();
      expect(limiter.stats().acquired).toBe(model.acquired + 1);
    }
  }

  #schedule(label: string): Promise<unknown> {
    return this.#scheduler.schedule(Promise.resolve(), label);
  }

  #abort(index: number): void {
    const controller = this.#signals[index];
    for (const [id, run] of this.#running) {
      if (run.controller !== controller || run.hasBegun || this.model.outcomes.get(id) !== 'granted')
        continue;
      this.#unstarted.push([id, run.weight]);
      this.#running.delete(id);
    }
    controller?.abort('left');
    this.model.abort(index);
  }

  #acquire(asked: Asked): void {
    const { request, options } = this.#prepare(asked);
    const granted = this.#requestFromModel(request);
    this.limiter.acquire(options).then(
      (permit) => {
        this.#permits.set(request.id, permit);
        granted();
      },
      (error: unknown) => this.#outcomes.set(request.id, outcomeOf(error)),
    );
  }

  #run(asked: Asked, going: Going): void {
    const { request, options } = this.#prepare(asked);
    const { id, weight } = request;
    const granted = this.#requestFromModel(request);
    const run: Running = { controller: this.#signals[request.signal ?? -1], weight, hasBegun: false };
    this.#running.set(id, run);
    const work = (context: RunContext) => {
      run.hasBegun = true;
      granted();
      return this.#work(id, weight, going, context);
    };
    this.limiter
      .run(work, options)
      .catch((error: unknown) => {
        // What the work itself fails with is no outcome of the request.
        if (!run.hasBegun) this.#outcomes.set(id, outcomeOf(error));
      })
      .finally(() => this.#running.delete(id));
  }

  #work(
    id: number,
    weight: number,
    { ends, honorsSignal, early }: Going,
    { signal, permit }: RunContext,
  ): unknown {
    if (early) {
      this.model.release(weight);
      permit.release('dropped');
    }
    const isOver = (): void => {
      if (!early) this.model.release(weight);
    };
    if (ends === 'thrown') {
      isOver();
      throw new Error('thrown');
    }
    const end = new Promise<void>((resolve, reject) => {
      const onAbort = () => reject(signal?.reason);
      if (honorsSignal) signal?.addEventListener('abort', onAbort);
      void this.#schedule(`end of ${id}`).then(() => {
        signal?.removeEventListener('abort', onAbort);
        if (ends === 'failed') reject(new Error('failed'));
        else resolve();
      });
    });
    // Ahead of the limiter's own.
    end.then(isOver, isOver);
    return end;
  }

  #prepare(asked: Asked): { request: ModelRequest; options: AcquireOptions | undefined } {
    const { weight, priority, tenant, signal, timeoutMs } = asked;
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
    const plain = Object.values(asked).every((value) => value === undefined);
    return {
      request,
      options: plain ? undefined : { weight, priority, tenant, timeoutMs, signal: controller?.signal },
    };
  }

  /** Makes the request to the model; the returned function is to be called when the limiter has granted it too. */
  #requestFromModel(request: ModelRequest): () => void {
    const atOnce = this.model.request(request);
    return () => {
      this.#outcomes.set(request.id, 'granted');
      if (!atOnce) this.#grantedAfterWaiting.push(request.id);
    };
  }

  #tryAcquire(weight: number): void {
    if (weight > this.model.maxWeight) {
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
}

async function microtasks(count: number): Promise<void> {
  for (let i = 0; i < count; i++) await undefined;
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
