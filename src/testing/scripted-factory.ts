import { callable, durationMs, oneOf, options, refusal } from '../internal/validate.js';

/** The callbacks of a pool. */
export type PoolStage = 'create' | 'validate' | 'prepare' | 'reset' | 'destroy';

const STAGES = ['create', 'validate', 'prepare', 'reset', 'destroy'] as const;

/**
 * What one call of a callback does.
 *
 * - `ok`: does its work at once: `create` makes an instance, `validate` says `true`.
 * - `returns`: fulfils with this value instead: `false` from `validate`, or nonsense.
 * - `rejects`: gives a promise that rejects. `throws`: throws before there is a promise.
 * - `slow`: does its work after `ms`, whatever its signal says.
 * - `heeds`: takes for ever, but rejects with its signal's reason when that aborts.
 * - `never`: takes for ever, whatever its signal says.
 * - `held`: waits in `held(stage)` until the test settles it.
 */
export type StageStep =
  | { readonly does: 'ok' }
  | { readonly does: 'returns'; readonly value: unknown }
  | { readonly does: 'rejects'; readonly error?: unknown }
  | { readonly does: 'throws'; readonly error?: unknown }
  | { readonly does: 'slow'; readonly ms: number }
  | { readonly does: 'heeds' }
  | { readonly does: 'never' }
  | { readonly does: 'held' };

/** What a pool tells a callback, as far as the stage has it. */
export interface StageContext {
  readonly instanceId: number;
  readonly signal: AbortSignal;
  /** Of `prepare` and `reset`. */
  readonly taskId?: string | undefined;
  /** Of `destroy`. */
  readonly reason?: string;
}

/** One call of a callback, as it was seen. */
export interface StageCall extends StageContext {
  readonly stage: PoolStage;
}

/** A call that waits for the test. */
export interface HeldCall extends StageCall {
  /** Lets it do its work. */
  readonly release: () => void;
  /** Makes it reject. */
  readonly fail: (error: unknown) => void;
}

/** The callbacks that a pool takes. */
export interface ScriptedCallbacks<T> {
  readonly create: (context: StageContext) => Promise<T>;
  readonly validate: (pipeline: T, context: StageContext) => Promise<boolean>;
  readonly prepare: (pipeline: T, context: StageContext) => Promise<void>;
  readonly reset: (pipeline: T, context: StageContext) => Promise<void>;
  readonly destroy: (pipeline: T, context: StageContext) => Promise<void>;
}

/** What a `ScriptedFactory` makes unless it is told otherwise. */
export interface ScriptedPipeline {
  readonly instanceId: number;
}

/**
 * A pool's callbacks by remote control: each call does what the test says, and everything is counted.
 *
 * Invariant, which a pool under test must uphold: `violations` stays empty. It lists callbacks that ran on an instance
 * at the same time (only `destroy` may overtake one that hangs), and callbacks on an instance that is torn down.
 *
 * @example
 * const factory = new ScriptedFactory();
 * const pool = new PipelinePool({ size: 2, ...factory.callbacks });
 * factory.next('create', { does: 'rejects' });
 * factory.always('reset', { does: 'slow', ms: 50 });
 */
export class ScriptedFactory<T = ScriptedPipeline> {
  readonly callbacks: ScriptedCallbacks<T>;
  readonly #make: (instanceId: number) => T;
  readonly #next = new Map<PoolStage, StageStep[]>();
  readonly #always = new Map<PoolStage, StageStep>();
  readonly #held: HeldCall[] = [];
  readonly #calls: StageCall[] = [];
  readonly #violations: string[] = [];
  // Instances from the start of `create` to the end of `destroy`, and the callbacks that run on each.
  readonly #live = new Map<number, Set<PoolStage>>();
  #peakLive = 0;

  /** `make` makes the instances; `{ instanceId }`, if left out. */
  constructor(given: { readonly make?: (instanceId: number) => T } = {}) {
    const { make } = options('ScriptedFactory options', given, ['make']);
    this.#make = make === undefined ? (instanceId) => ({ instanceId }) as T : callable('make', make);
    this.callbacks = {
      create: (context) => this.#run('create', context, () => this.#make(context.instanceId)) as Promise<T>,
      validate: (_, context) => this.#run('validate', context, () => true) as Promise<boolean>,
      prepare: (_, context) => this.#run('prepare', context, () => undefined) as Promise<void>,
      reset: (_, context) => this.#run('reset', context, () => undefined) as Promise<void>,
      destroy: (_, context) => this.#run('destroy', context, () => undefined) as Promise<void>,
    };
  }

  /** Says what the next calls of a callback do, one each, in this order. */
  next(stage: PoolStage, ...steps: readonly StageStep[]): this {
    const queue = this.#next.get(oneOf('stage', stage, STAGES)) ?? [];
    queue.push(...steps.map(checkStep));
    this.#next.set(stage, queue);
    return this;
  }

  /** Says what a callback does where `next` says nothing; `ok` to begin with. */
  always(stage: PoolStage, step: StageStep): this {
    this.#always.set(oneOf('stage', stage, STAGES), checkStep(step));
    return this;
  }

  /** The calls of a callback that wait for the test, oldest first. */
  held(stage: PoolStage): readonly HeldCall[] {
    return this.#held.filter((call) => call.stage === stage);
  }

  /** All calls so far, of one callback or of all, in their order. */
  calls(stage?: PoolStage): readonly StageCall[] {
    return stage === undefined ? [...this.#calls] : this.#calls.filter((call) => call.stage === stage);
  }

  /** Instances that are being made, are there, or are being torn down. */
  get live(): number {
    return this.#live.size;
  }

  /** The most that were ever live at once: what a pool must keep at or below its size. */
  get peakLive(): number {
    return this.#peakLive;
  }

  get violations(): readonly string[] {
    return this.#violations;
  }

  #run(stage: PoolStage, context: StageContext, work: () => unknown): Promise<unknown> {
    const call: StageCall = { ...context, stage };
    this.#calls.push(call);
    const done = this.#begin(call);
    const step = this.#next.get(stage)?.shift() ?? this.#always.get(stage) ?? { does: 'ok' };
    if (step.does === 'throws') {
      done(false);
      throw step.error ?? new Error(`${stage} of instance ${context.instanceId} throws`);
    }
    return this.#perform(step, call, work).then(
      (value) => {
        done(true);
        return value;
      },
      (error: unknown) => {
        done(false);
        throw error;
      },
    );
  }

  async #perform(
    step: Exclude<StageStep, { does: 'throws' }>,
    call: StageCall,
    work: () => unknown,
  ): Promise<unknown> {
    switch (step.does) {
      case 'ok':
        return work();
      case 'returns':
        return step.value;
      case 'rejects':
        throw step.error ?? new Error(`${call.stage} of instance ${call.instanceId} rejects`);
      case 'slow':
        await new Promise((resolve) => setTimeout(resolve, step.ms));
        return work();
      case 'heeds':
        return new Promise((_, reject) => {
          if (call.signal.aborted) reject(call.signal.reason);
          call.signal.addEventListener('abort', () => reject(call.signal.reason), { once: true });
        });
      case 'never':
        return new Promise(() => {});
      case 'held':
        await this.#hold(call);
        return work();
    }
  }

  #hold(call: StageCall): Promise<void> {
    return new Promise((resolve, reject) => {
      const settle = (how: () => void): void => {
        const index = this.#held.indexOf(held);
        if (index < 0) throw new Error(`${call.stage} of instance ${call.instanceId} was settled already`);
        this.#held.splice(index, 1);
        how();
      };
      const held: HeldCall = {
        ...call,
        release: () => settle(resolve),
        fail: (error) => settle(() => reject(error)),
      };
      this.#held.push(held);
    });
  }

  /** Notes that a callback runs. What it gives back notes the end. */
  #begin({ stage, instanceId }: StageCall): (succeeded: boolean) => void {
    if (stage === 'create') {
      if (this.#live.has(instanceId)) this.#violations.push(`create of instance ${instanceId} a second time`);
      this.#live.set(instanceId, new Set());
      this.#peakLive = Math.max(this.#peakLive, this.#live.size);
    }
    const running = this.#live.get(instanceId);
    if (running === undefined) {
      this.#violations.push(`${stage} of instance ${instanceId}, which is not there`);
      return () => {};
    }
    if (running.has('destroy') || (stage !== 'destroy' && running.size > 0)) {
      this.#violations.push(`${stage} of instance ${instanceId} during ${[...running].join(' and ')}`);
    }
    running.add(stage);
    return (succeeded) => {
      running.delete(stage);
      if (stage === 'destroy' || (stage === 'create' && !succeeded)) this.#live.delete(instanceId);
    };
  }
}

function checkStep(step: StageStep): StageStep {
  if (typeof step !== 'object' || step === null) throw new TypeError(refusal('step', 'an object', step));
  oneOf('step.does', step.does, ['ok', 'returns', 'rejects', 'throws', 'slow', 'heeds', 'never', 'held']);
  if (step.does === 'slow') durationMs('step.ms', step.ms);
  return step;
}
