import { callable, durationMs, oneOf, options, refusal } from '../internal/validate.js';

/** The callbacks of a pool. */
export type PoolStage = 'create' | 'validate' | 'prepare' | 'reset' | 'destroy';

const STEPS = ['ok', 'returns', 'rejects', 'throws', 'slow', 'until-abort', 'never', 'held'] as const;
const STAGES = ['create', 'validate', 'prepare', 'reset', 'destroy'] as const;

/**
 * What one call of a callback does.
 *
 * - `ok`: succeeds at once: `create` returns an instance, `validate` returns `true`.
 * - `returns`: resolves with this value instead, for example `false` from `validate`.
 * - `rejects`: returns a promise that rejects. `throws`: throws synchronously.
 * - `slow`: succeeds after `ms`, ignoring its signal.
 * - `until-abort`: never settles, except that it rejects with the signal's reason when that aborts.
 * - `never`: never settles, ignoring its signal.
 * - `held`: waits in `held(stage)` until the test settles it.
 */
export type StageStep =
  | { readonly does: 'ok' }
  | { readonly does: 'returns'; readonly value: unknown }
  | { readonly does: 'rejects'; readonly error?: unknown }
  | { readonly does: 'throws'; readonly error?: unknown }
  | { readonly does: 'slow'; readonly ms: number }
  | { readonly does: 'until-abort' }
  | { readonly does: 'never' }
  | { readonly does: 'held' };

/** What a pool passes to a callback. */
export interface StageContext {
  readonly instanceId: number;
  readonly signal: AbortSignal;
  /** For `prepare` and `reset`. */
  readonly taskId?: string | undefined;
  /** For `destroy`. */
  readonly reason?: string;
}

/** One recorded call of a callback. */
export interface StageCall extends StageContext {
  readonly stage: PoolStage;
}

/** A call that the test has to settle. */
export interface HeldCall extends StageCall {
  /** Lets it succeed. */
  readonly release: () => void;
  /** Makes it reject. */
  readonly fail: (error: unknown) => void;
}

/** The callbacks for a `PipelinePool`. */
export interface ScriptedCallbacks<T> {
  readonly create: (context: StageContext) => Promise<T>;
  readonly validate: (pipeline: T, context: StageContext) => Promise<boolean>;
  readonly prepare: (pipeline: T, context: StageContext) => Promise<void>;
  readonly reset: (pipeline: T, context: StageContext) => Promise<void>;
  readonly destroy: (pipeline: T, context: StageContext) => Promise<void>;
}

/** The default instance of a `ScriptedFactory`. */
export interface ScriptedPipeline {
  readonly instanceId: number;
}

/**
 * Callbacks for a `PipelinePool` under test: each call does what the test scripts, and all calls are recorded. The option
 * `make` creates the instances; by default they are `{ instanceId }`.
 *
 * Invariant, to be kept by the pool: `violations` stays empty. It lists callbacks that ran concurrently on one instance (only
 * `destroy` may overtake one that hangs), and callbacks on a destroyed instance.
 *
 * @example
 * const factory = new ScriptedFactory();
 * const pool = new PipelinePool({ size: 2, ...factory.callbacks });
 * factory.next('create', { does: 'rejects' });
 * factory.always('reset', { does: 'slow', ms: 50 });
 */
export class ScriptedFactory<T = ScriptedPipeline> {
  /** What the pool takes. */
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

  /** Scripts the next calls of a callback, one step each. */
  next(stage: PoolStage, ...steps: readonly StageStep[]): this {
    const queued = this.#next.get(oneOf('stage', stage, STAGES)) ?? [];
    this.#next.set(stage, [...queued, ...steps.map(checkStep)]);
    return this;
  }

  /** Scripts all calls of a callback without a step from `next`; initially `ok`. */
  always(stage: PoolStage, step: StageStep): this {
    this.#always.set(oneOf('stage', stage, STAGES), checkStep(step));
    return this;
  }

  /** The held calls of a callback, oldest first. */
  held(stage: PoolStage): readonly HeldCall[] {
    return this.#held.filter((call) => call.stage === stage);
  }

  /** All calls so far, of one callback or of all, in order. */
  calls(stage?: PoolStage): readonly StageCall[] {
    return stage === undefined ? [...this.#calls] : this.#calls.filter((call) => call.stage === stage);
  }

  /** Instances from the start of `create` to the end of `destroy`. */
  get live(): number {
    return this.#live.size;
  }

  /** Maximum of `live`; a pool must keep it at or below its size. */
  get peakLive(): number {
    return this.#peakLive;
  }

  /** Broken guarantees of the pool, as text. */
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
      case 'until-abort':
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

  /** Records the start of a callback; returns a function that records its end. */
  #begin({ stage, instanceId }: StageCall): (succeeded: boolean) => void {
    if (stage === 'create') {
      if (this.#live.has(instanceId)) this.#violations.push(`create of instance ${instanceId} a second time`);
      this.#live.set(instanceId, new Set());
      this.#peakLive = Math.max(this.#peakLive, this.#live.size);
    }
    const running = this.#live.get(instanceId);
    if (running === undefined) {
      this.#violations.push(`${stage} of instance ${instanceId}, which does not exist`);
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
  oneOf('step.does', step.does, STEPS);
  if (step.does === 'slow') durationMs('step.ms', step.ms);
  return step;
}
