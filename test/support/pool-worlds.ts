import { AsyncLocalStorage } from 'node:async_hooks';
import type { InstanceContext, PipelinePoolOptions, TaskContext } from '../../src/pool/options.js';
import type { PipelinePool } from '../../src/pool/pipeline-pool.js';
import { sleep } from './promises.js';

/** How a callback of the host behaves. `slow` answers in time for every other instance, and too late for the rest. */
export const BEHAVIOURS = ['ok', 'rejects', 'throws', 'slow', 'never'] as const;
export type Behaviour = (typeof BEHAVIOURS)[number];

/** One behaviour for each callback of a pool. */
export interface Faults {
  readonly create: Behaviour;
  readonly validate: Behaviour;
  readonly prepare: Behaviour;
  readonly reset: Behaviour;
  readonly destroy: Behaviour;
}

/** All callbacks get this long. */
export const DEADLINE_MS = 50;
const IN_TIME_MS = 20;
const TOO_LATE_MS = 80;

/** An instance, as the host sees it. */
export interface Thing {
  readonly id: number;
  /** What of the host's code is running on it. */
  busy: string | undefined;
  destroyed: boolean;
  holder: string | undefined;
}

/** Which task is running: every callback must see its own, or none. */
export const taskStore = new AsyncLocalStorage<string>();

/**
 * The host of a pool under test: its callbacks, behaving as configured, and the invariants of the pool at every step as
 * only the host can see them.
 */
export class World {
  readonly violations: string[] = [];
  /** Instances from the start of `create` to the end of `destroy`, as the host counts them. */
  alive = 0;
  pool!: PipelinePool<Thing>;
  #lastLive = 0;
  #lastAlive = 0;
  readonly #faults: Faults;
  /** Whether a callback may outlive its deadline, and so live on beyond the count. */
  readonly #mayOutlive: boolean;

  constructor(faults: Faults) {
    this.#faults = faults;
    this.#mayOutlive = [faults.create, faults.destroy].some((b) => b === 'slow' || b === 'never');
  }

  callbacks(): Pick<PipelinePoolOptions<Thing>, keyof Faults> {
    return {
      create: (context) => this.#create(context),
      validate: (thing, { instanceId }) => this.#on('validate', thing, instanceId, undefined, () => true),
      prepare: (thing, context) => this.#on('prepare', thing, context.instanceId, context, () => undefined),
      reset: (thing, context) => this.#on('reset', thing, context.instanceId, context, () => undefined),
      destroy: (thing, { instanceId }) => this.#destroy(thing, instanceId),
    };
  }

  /** A task has been given an instance. */
  took(thing: Thing, task: string): void {
    if (thing.holder !== undefined) this.#violated(`${task} was given what ${thing.holder} holds`);
    if (thing.destroyed) this.#violated(`${task} was given a destroyed instance`);
    if (thing.busy !== undefined) this.#violated(`${task} was given an instance under ${thing.busy}`);
    thing.holder = task;
    this.check();
  }

  /** A task gives its instance up, or has lost it. */
  gave(thing: Thing): void {
    thing.holder = undefined;
    this.check();
  }

  /** What holds at every step. */
  check(): void {
    const stats = this.pool.stats();
    const { live, size, creating, idle, readying, leased, resetting, destroying } = stats;
    // Shrinking revokes nothing: what was alive before may stand above the new size, but nothing is added to it.
    if (live > Math.max(size, this.#lastLive)) this.#violated(`${live} live of ${size}`);
    if (!this.#mayOutlive && this.alive > Math.max(size, this.#lastAlive)) {
      this.#violated(`${this.alive} alive of ${size}`);
    }
    this.#lastLive = live;
    this.#lastAlive = this.alive;
    if (live !== creating + idle + readying + leased + resetting + destroying) {
      this.#violated(`the parts do not add up: ${JSON.stringify(stats)}`);
    }
    if (Math.min(live, creating, idle, readying, leased, resetting, destroying) < 0) {
      this.#violated(`a count below zero: ${JSON.stringify(stats)}`);
    }
  }

  #create({ instanceId }: InstanceContext): Thing | Promise<Thing> {
    this.#sees('create', undefined);
    this.alive++;
    this.check();
    const thing: Thing = { id: instanceId, busy: undefined, destroyed: false, holder: undefined };
    const fail = (): never => {
      this.alive--;
      throw new Error('create failed');
    };
    return this.#behave(this.#faults.create, instanceId, () => thing, fail);
  }

  #destroy(thing: Thing, instanceId: number): unknown {
    this.#sees('destroy', undefined);
    if (thing.destroyed) this.#violated(`instance ${instanceId} was destroyed twice`);
    if (thing.holder !== undefined) this.#violated(`destroyed under ${thing.holder}`);
    thing.destroyed = true;
    const end = (): void => {
      this.alive--;
    };
    return this.#behave(this.#faults.destroy, instanceId, end, () => {
      end();
      throw new Error('destroy failed');
    });
  }

  #on<R>(
    stage: 'validate' | 'prepare' | 'reset',
    thing: Thing,
    instanceId: number,
    task: TaskContext | undefined,
    answer: () => R,
  ): R | Promise<R> {
    this.#sees(stage, task?.taskId);
    if (thing.destroyed) this.#violated(`${stage} of a destroyed instance`);
    if (thing.busy !== undefined) this.#violated(`${stage} during ${thing.busy}`);
    if (thing.holder !== undefined) this.#violated(`${stage} under ${thing.holder}`);
    this.check();
    thing.busy = stage;
    const done = (): R => {
      thing.busy = undefined;
      return answer();
    };
    return this.#behave(this.#faults[stage], instanceId, done, () => {
      thing.busy = undefined;
      throw new Error(`${stage} failed`);
    });
  }

  #behave<R>(behaviour: Behaviour, instanceId: number, answer: () => R, fail: () => never): R | Promise<R> {
    switch (behaviour) {
      case 'ok':
        return instanceId % 2 === 0 ? answer() : Promise.resolve().then(answer);
      case 'rejects':
        return sleep(instanceId % 3).then(fail);
      case 'throws':
        return fail();
      case 'slow':
        return sleep(instanceId % 2 === 0 ? TOO_LATE_MS : IN_TIME_MS).then(answer);
      case 'never':
        return new Promise(() => {});
    }
  }

  #sees(stage: string, task: string | undefined): void {
    const store = taskStore.getStore();
    if (store !== task)
      this.#violated(`${stage} for ${task ?? 'the pool'} saw the context of ${store ?? 'no request'}`);
  }

  #violated(what: string): void {
    // The first few are enough.
    if (this.violations.length < 5) this.violations.push(what);
  }
}
