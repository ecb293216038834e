import type { PoolFigures, QueueFigures } from '../errors.js';
import { channels } from '../hooks/diagnostics.js';
import type { DestroyReason, LeaseRejection, LifecycleEvents, RevocationReason } from '../hooks/events.js';
import type { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { turnMs } from '../internal/clock.js';
import { toldOf } from '../internal/told-error.js';
import type { Instance } from './instance.js';
import type { LeaseOptions } from './pool-options.js';
import type { Roster } from './roster.js';

// By channel, not by name, where every lease is told: four look-ups were a sixth of what one costs.
const {
  'lease:queued': QUEUED,
  'lease:acquired': ACQUIRED,
  'lease:rejected': REJECTED,
  'lease:released': RELEASED,
} = channels;

/** Tells what happens in a pool, if anybody listens, and knows the figures that events and errors carry. */
export class PoolTeller<T> {
  readonly source: string;
  readonly hooks: LifecycleHooks;
  readonly #roster: Roster<T>;
  readonly #waiting: () => number;

  constructor(source: string, hooks: LifecycleHooks, roster: Roster<T>, waiting: () => number) {
    this.source = source;
    this.hooks = hooks;
    this.#roster = roster;
    this.#waiting = waiting;
  }

  /** What an error says of the moment. */
  poolFigures(elapsedMs: number, instanceId?: number): PoolFigures {
    const { live, idle, leased } = this.#roster;
    const figures = { source: this.source, elapsedMs, live, idle, leased, waiting: this.#waiting() };
    return instanceId === undefined ? figures : { ...figures, instanceId };
  }

  /** What the error of one who waited in vain says of the moment. */
  queueFigures(waitedMs: number): QueueFigures & { readonly live: number; readonly idle: number } {
    const { live, idle, leased, size } = this.#roster;
    return { source: this.source, waitedMs, active: leased, queued: this.#waiting(), size, live, idle };
  }

  creating(instanceId: number): void {
    if (!this.hooks.hears('instance:creating')) return;
    this.hooks.emit('instance:creating', { ...this.#told(undefined), instanceId });
  }

  created(instanceId: number, createMs: number): void {
    if (!this.hooks.hears('instance:created')) return;
    this.hooks.emit('instance:created', { ...this.#told(undefined), instanceId, createMs });
  }

  createFailed(
    instanceId: number,
    details: Pick<LifecycleEvents['instance:createFailed'], 'error' | 'createMs' | 'failures' | 'retryInMs'>,
  ): void {
    if (!this.hooks.hears('instance:createFailed')) return;
    this.hooks.emit('instance:createFailed', {
      ...this.#told(undefined),
      instanceId,
      ...details,
      error: toldOf(details.error),
    });
  }

  /** `failure` is what the callback threw, where it threw. */
  unhealthy(
    instanceId: number,
    stage: 'validate' | 'prepare' | 'reset',
    failure: { readonly error: unknown } | undefined,
    options?: LeaseOptions,
  ): void {
    if (!this.hooks.hears('instance:unhealthy')) return;
    const told = failure && { error: toldOf(failure.error) };
    this.hooks.emit('instance:unhealthy', { ...this.#told(options), instanceId, stage, ...told });
  }

  destroyed(instance: Instance<T>, reason: DestroyReason, destroyMs: number): void {
    if (!this.hooks.hears('instance:destroyed')) return;
    const { id: instanceId, uses, bornMs } = instance;
    const ageMs = turnMs() - bornMs;
    this.hooks.emit('instance:destroyed', {
      ...this.#told(undefined),
      instanceId,
      reason,
      destroyMs,
      ageMs,
      uses,
    });
  }

  destroyFailed(instanceId: number, reason: DestroyReason, destroyMs: number, error: unknown): void {
    if (!this.hooks.hears('instance:destroyFailed')) return;
    this.hooks.emit('instance:destroyFailed', {
      ...this.#told(undefined),
      instanceId,
      reason,
      destroyMs,
      error: toldOf(error),
    });
  }

  /** Whether anybody would be told what becomes of those who wait. */
  get hearsOfWaiters(): boolean {
    return (
      this.hooks.hasListeners || QUEUED.hasSubscribers || ACQUIRED.hasSubscribers || REJECTED.hasSubscribers
    );
  }

  queued(options: LeaseOptions | undefined): void {
    if (this.hooks.hears('lease:queued')) this.hooks.emit('lease:queued', this.#told(options));
  }

  acquired(instanceId: number, options: LeaseOptions | undefined, waitMs: number): void {
    if (!this.hooks.hasListeners && !ACQUIRED.hasSubscribers) return;
    if (!this.hooks.hears('lease:acquired')) return;
    this.hooks.emit('lease:acquired', { ...this.#told(options), instanceId, waitMs });
  }

  released(instanceId: number, options: LeaseOptions | undefined, heldMs: number, discarded: boolean): void {
    if (!this.hooks.hasListeners && !RELEASED.hasSubscribers) return;
    if (!this.hooks.hears('lease:released')) return;
    this.hooks.emit('lease:released', { ...this.#told(options), instanceId, heldMs, discarded });
  }

  rejected(options: LeaseOptions | undefined, reason: LeaseRejection, waitMs: number, error: unknown): void {
    if (!this.hooks.hears('lease:rejected')) return;
    this.hooks.emit('lease:rejected', { ...this.#told(options), reason, waitMs, error: toldOf(error) });
  }

  leaked(
    instanceId: number,
    options: LeaseOptions | undefined,
    heldMs: number,
    kind: 'overdue' | 'returned' | 'collected',
    stack: string | undefined,
  ): void {
    if (!this.hooks.hears('lease:leaked')) return;
    const payload = { ...this.#told(options), instanceId, heldMs, kind };
    this.hooks.emit('lease:leaked', stack === undefined ? payload : { ...payload, stack });
  }

  revoked(
    instanceId: number,
    options: LeaseOptions | undefined,
    heldMs: number,
    reason: RevocationReason,
  ): void {
    if (!this.hooks.hears('lease:revoked')) return;
    this.hooks.emit('lease:revoked', { ...this.#told(options), instanceId, heldMs, reason });
  }

  #told(options: LeaseOptions | undefined) {
    const { live, leased, size } = this.#roster;
    return {
      source: this.source,
      taskId: options?.taskId,
      requestId: options?.requestId,
      tenant: options?.tenant,
      live,
      leased,
      waiting: this.#waiting(),
      size,
    };
  }
}
