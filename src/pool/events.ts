import type { LeaseRejection, LifecycleEventName, LifecycleEvents, PoolEvents } from '../hooks/events.js';
import type { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { channelOf, channels } from '../hooks/lifecycle-hooks.js';
import { type ErrorSummary, enableRedaction, redactError } from '../internal/redaction.js';
import type { Failure, InstanceRegistry, LeaseRequest } from './instances.js';
import type { LeaseOptions } from './options.js';
import type { Waiters } from './waiters.js';

// By channel, not by name, in the events of every lease: four look-ups were a sixth of what one costs.
const QUEUED = /* @__PURE__ */ channelOf('lease:queued');
const ACQUIRED = /* @__PURE__ */ channelOf('lease:acquired');
const REJECTED = /* @__PURE__ */ channelOf('lease:rejected');
const RELEASED = /* @__PURE__ */ channelOf('lease:released');

/** The fields of an event beyond those that every event has. */
type OwnFields<E extends keyof PoolEvents> = Omit<PoolEvents[E], keyof PoolEvents['lease:queued'] | 'error'>;

/** Emits the events of a pool. No payload is made for an event without a listener. */
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

  /** `failure` is what the host's code threw, if it threw. */
  emit<E extends keyof PoolEvents>(
    event: E,
    fields: OwnFields<E>,
    failure?: Failure,
    options?: LeaseOptions,
  ): void {
    if (!this.#hasListeners(event)) return;
    const error = failure && { error: this.#summarize(failure.error) };
    this.#hooks.emit(event, { ...this.#payload(options), ...fields, ...error } as LifecycleEvents[E]);
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
    this.emit('lease:rejected', { reason, waitMs }, { error }, options);
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
