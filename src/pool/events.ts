import type {
  DestroyReason,
  LeaseRejection,
  LifecycleEventName,
  LifecycleEvents,
  RevocationReason,
} from '../hooks/events.js';
import type { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { channelOf, channels } from '../hooks/lifecycle-hooks.js';
import { type ErrorSummary, enableRedaction, redactError } from '../internal/redaction.js';
import type { Instance, InstanceRegistry, LeaseRequest } from './instances.js';
import type { LeaseOptions } from './options.js';
import type { Waiters } from './waiters.js';

// By channel, not by name, in the events of every lease: four look-ups were a sixth of what one costs.
const QUEUED = /* @__PURE__ */ channelOf('lease:queued');
const ACQUIRED = /* @__PURE__ */ channelOf('lease:acquired');
const REJECTED = /* @__PURE__ */ channelOf('lease:rejected');
const RELEASED = /* @__PURE__ */ channelOf('lease:released');

/** Emits the events of a pool. An event without a listener costs one check: no payload is made. */
export class PoolEventEmitter<T> {
  readonly #source: string;
  readonly #hooks: LifecycleHooks;
  readonly #instances: InstanceRegistry<T>;
  readonly #waiters: Waiters<T>;
  #lastSummary: { readonly error: unknown; readonly summary: ErrorSummary } | undefined;

  constructor(source: string, hooks: LifecycleHooks, instances: InstanceRegistry<T>, waiters: Waiters<T>) {
    enableRedaction();
    this.#source = source;
    this.#hooks = hooks;
    this.#instances = instances;
    this.#waiters = waiters;
  }

  creating(instanceId: number): void {
    if (!this.#hasListeners('instance:creating')) return;
    this.#hooks.emit('instance:creating', { instanceId, ...this.#payload(undefined) });
  }

  created(instanceId: number, createMs: number): void {
    if (!this.#hasListeners('instance:created')) return;
    this.#hooks.emit('instance:created', { instanceId, createMs, ...this.#payload(undefined) });
  }

  createFailed(
    instanceId: number,
    error: unknown,
    details: Pick<LifecycleEvents['instance:create-failed'], 'createMs' | 'failures' | 'retryAfterMs'>,
  ): void {
    if (!this.#hasListeners('instance:create-failed')) return;
    this.#hooks.emit('instance:create-failed', {
      ...this.#payload(undefined),
      instanceId,
      ...details,
      error: this.#summarize(error),
    });
  }

  /** `failure` is what the callback threw, if it threw. */
  unhealthy(
    instanceId: number,
    stage: 'validate' | 'prepare' | 'reset',
    failure: { readonly error: unknown } | undefined,
    options?: LeaseOptions,
  ): void {
    if (!this.#hasListeners('instance:unhealthy')) return;
    const error = failure && { error: this.#summarize(failure.error) };
    this.#hooks.emit('instance:unhealthy', { ...this.#payload(options), instanceId, stage, ...error });
  }

  destroyed({ id, uses }: Instance<T>, reason: DestroyReason, destroyMs: number, ageMs: number): void {
    if (!this.#hasListeners('instance:destroyed')) return;
    const payload = { instanceId: id, reason, destroyMs, ageMs, uses, ...this.#payload(undefined) };
    this.#hooks.emit('instance:destroyed', payload);
  }

  destroyFailed(instanceId: number, reason: DestroyReason, destroyMs: number, error: unknown): void {
    if (!this.#hasListeners('instance:destroy-failed')) return;
    const payload = {
      ...this.#payload(undefined),
      instanceId,
      reason,
      destroyMs,
      error: this.#summarize(error),
    };
    this.#hooks.emit('instance:destroy-failed', payload);
  }

  /** Whether any event of a waiter has a listener. */
  get hasWaiterListeners(): boolean {
    return (
      this.#hooks.hasAnyListeners ||
      QUEUED.hasSubscribers ||
      ACQUIRED.hasSubscribers ||
      REJECTED.hasSubscribers
    );
  }

  queued(request: LeaseRequest<T>): void {
    if (!this.#hasListeners('lease:queued')) return;
    const payload = Object.assign(this.#payload(request.options), this.#waiters.placeOf(request));
    this.#hooks.emit('lease:queued', payload);
  }

  acquired(instanceId: number, options: LeaseOptions | undefined, waitMs: number): void {
    if (!this.#hooks.hasAnyListeners && !ACQUIRED.hasSubscribers) return;
    if (!this.#hooks.hasListeners('lease:acquired')) return;
    this.#hooks.emit('lease:acquired', { instanceId, waitMs, ...this.#payload(options) });
  }

  released(instanceId: number, options: LeaseOptions | undefined, heldMs: number, discarded: boolean): void {
    if (!this.#hooks.hasAnyListeners && !RELEASED.hasSubscribers) return;
    if (!this.#hooks.hasListeners('lease:released')) return;
    this.#hooks.emit('lease:released', { instanceId, heldMs, discarded, ...this.#payload(options) });
  }

  rejected(options: LeaseOptions | undefined, reason: LeaseRejection, waitMs: number, error: unknown): void {
    if (!this.#hasListeners('lease:rejected')) return;
    const payload = {
      reason,
      waitMs,
      error: this.#summarize(error),
      ...this.#payload(options),
    };
    this.#hooks.emit('lease:rejected', payload);
  }

  leaked(
    instanceId: number,
    options: LeaseOptions | undefined,
    heldMs: number,
    kind: 'overdue' | 'returned' | 'collected',
    stack: string | undefined,
  ): void {
    if (!this.#hasListeners('lease:leaked')) return;
    const payload = { instanceId, heldMs, kind, ...this.#payload(options) };
    this.#hooks.emit('lease:leaked', stack === undefined ? payload : { ...payload, stack });
  }

  revoked(
    instanceId: number,
    options: LeaseOptions | undefined,
    heldMs: number,
    reason: RevocationReason,
  ): void {
    if (!this.#hasListeners('lease:revoked')) return;
    this.#hooks.emit('lease:revoked', { instanceId, heldMs, reason, ...this.#payload(options) });
  }

  /** The part of an error that payloads carry. Close and abort reject many waiters with one error: it is redacted once. */
  #summarize(error: unknown): ErrorSummary {
    if (this.#lastSummary === undefined || this.#lastSummary.error !== error) {
      this.#lastSummary = { error, summary: redactError(error, this.#hooks.redact) };
      queueMicrotask(() => {
        this.#lastSummary = undefined;
      });
    }
    return this.#lastSummary.summary;
  }

  #hasListeners(event: LifecycleEventName): boolean {
    return (this.#hooks.hasAnyListeners || channels[event].hasSubscribers) && this.#hooks.hasListeners(event);
  }

  /** The fields of every event. */
  #payload(options: LeaseOptions | undefined) {
    const { live, leased, size } = this.#instances;
    return {
      source: this.#source,
      taskId: options?.taskId,
      requestId: options?.requestId,
      tenant: options?.tenant,
      live,
      leased,
      queued: this.#waiters.queued,
      size,
    };
  }
}
