import { LimiterClosedError } from '../errors.js';
import type { SharedGate, SharedGateConfig, SharedLimits } from '../gate/shared-limits.js';
import type { LifecycleEventName, LifecycleEvents } from '../hooks/events.js';
import { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { refusal } from '../internal/validate.js';
import { CommandConnection, Subscriber } from './client.js';
import { FleetLimiter, type FleetLimiterStats } from './fleet-limiter.js';
import { FleetStarts } from './fleet-starts.js';
import type { FleetMember } from './member.js';
import {
  checkLimiterOptions,
  checkRedisLimitsOptions,
  type FleetLimiterOptions,
  type FleetOptions,
  keyText,
  LIMITER_OPTIONS,
  type RedisLimitsOptions,
} from './options.js';

/*
 * Limits that several processes share over Redis. In this folder: `script.ts` is what Redis runs, with `tenants-script.ts`
 * in it, `member.ts` sends it and keeps the lease, `fleet-limiter.ts` and `fleet-permit.ts` are the limiter,
 * `queue-places.ts` knows where waiters stand, `local-share.ts` replaces Redis while it is out of reach. The starts of a
 * gate are `starts-script.ts`, `fleet-starts.ts` and `fleet-windows.ts`. `client.ts` adapts the host's client.
 */

/**
 * Limits that hold for all processes of a fleet together, kept in Redis 7.0 or later, or Valkey.
 *
 * Guarantees:
 * - The weight held by all members together never exceeds a limit, whatever fails: a killed or a stopped process, lost
 *   connections, Redis restarted empty. Redis is one authority, not a consensus: a failover that loses a partition of the
 *   network ("split brain") is bounded only by `min-replicas-to-write`.
 * - Order: by priority, then FIFO across the fleet.
 * - A holder that may have lost its permit knows before another has it: `permit.signal` aborts with `LimitLostError`.
 *
 * @throws {TypeError | RangeError} naming the wrong option and its value
 *
 * @example
 * const client = await createClient({ url }).connect();
 * const limits = new RedisLimits({ client });
 * const requests = limits.limiter({ name: 'requests', maxConcurrent: 200 });
 * const answer = await requests.run(({ signal }) => research(question, signal));
 */
export class RedisLimits implements SharedLimits, AsyncDisposable {
  /** The `source` of its events and errors. */
  readonly name: string;
  /** Where its limiters emit their events, where they have no hooks of their own. */
  readonly hooks: LifecycleHooks;
  readonly #fleet: FleetOptions;
  readonly #connection: CommandConnection;
  readonly #subscriber: Subscriber;
  readonly #limiters = new Map<
    string,
    { readonly limiter: FleetLimiter; readonly options: FleetLimiterOptions }
  >();
  readonly #starts = new Set<FleetStarts>();
  /** By the name of a gate, the hooks of its limiter. */
  readonly #gateHooks = new Map<string, LifecycleHooks>();
  readonly #unwatch: () => void;
  #closing: Promise<void> | undefined;

  constructor(options: RedisLimitsOptions) {
    const { name = 'limits', ...fleet } = checkRedisLimitsOptions(options);
    this.name = name;
    this.hooks = fleet.hooks;
    this.#fleet = fleet;
    this.#connection = new CommandConnection(options.client);
    this.#subscriber = new Subscriber(this.#connection, () =>
      this.#each((member) => member.onSubscriberReady()),
    );
    this.#unwatch = this.#connection.watch(
      () => this.#each((member) => member.onUp()),
      () => this.#each((member) => member.onDown()),
    );
  }

  /**
   * The limiter of this name. The same one each time: other options that differ from those of the first call are refused.
   *
   * @throws {TypeError | RangeError} naming the wrong option and its value
   *
   * @example
   * const llm = limits.limiter({ name: 'llm', maxConcurrent: 64 });
   */
  limiter(given: FleetLimiterOptions): FleetLimiter {
    const options = checkLimiterOptions(given);
    if (this.#closing !== undefined) throw new LimiterClosedError(this.name);
    const known = this.#limiters.get(options.name);
    if (known !== undefined) {
      for (const option of LIMITER_OPTIONS) {
        if (options[option] === known.options[option]) continue;
        throw new TypeError(refusal(option, `as in the first call for "${options.name}"`, options[option]));
      }
      return known.limiter;
    }
    const limiter = new FleetLimiter(options, this.#fleet, this.#connection, this.#subscriber);
    this.#limiters.set(options.name, { limiter, options });
    limiter.member.start();
    return limiter;
  }

  /** @internal What a gate of this name shares with those of other processes. */
  gate(config: SharedGateConfig): SharedGate {
    if (this.#closing !== undefined) throw new LimiterClosedError(this.name);
    const { maxConcurrent, fairness } = config;
    const name = keyText('name', config.name);
    const hooks = this.#gateHooks.get(name) ?? new GateLimiterHooks(config.hooks);
    this.#gateHooks.set(name, hooks);
    const limiter =
      maxConcurrent === undefined ? undefined : this.limiter({ ...fairness, name, maxConcurrent, hooks });
    const starts = new FleetStarts(config, this.#fleet, this.#connection, this.#subscriber);
    this.#starts.add(starts);
    starts.member.start();
    const close = async (): Promise<void> => {
      if (this.#starts.has(starts)) await Promise.all([starts.close(), limiter?.close()]);
      this.#starts.delete(starts);
      this.#limiters.delete(name);
      this.#gateHooks.delete(name);
    };
    return { limiter, starts, close };
  }

  /** A snapshot of all its limiters, by name. */
  stats(): Readonly<Record<string, FleetLimiterStats>> {
    const stats: Record<string, FleetLimiterStats> = {};
    for (const [name, { limiter }] of this.#limiters) stats[name] = limiter.stats();
    return Object.freeze(stats);
  }

  /**
   * Ends all limiters: rejects their waiters, aborts the signals of held permits, and only then releases these. Closes its
   * subscriber; the client remains the host's.
   */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  /** `close()`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(): Promise<void> {
    await Promise.all([
      ...[...this.#limiters.values()].map(({ limiter }) => limiter.terminate()),
      ...[...this.#starts].map((starts) => starts.close()),
    ]);
    this.#unwatch();
    this.#subscriber.close();
  }

  #each(act: (member: FleetMember) => void): void {
    for (const { limiter } of this.#limiters.values()) act(limiter.member);
    for (const { member } of this.#starts) act(member);
  }
}

/** For the limiter of a gate: silent, but for what the events of calls do not include. */
class GateLimiterHooks extends LifecycleHooks {
  readonly #gateHooks: LifecycleHooks;

  constructor(gateHooks: LifecycleHooks) {
    super();
    this.#gateHooks = gateHooks;
  }

  override hasListeners(event: LifecycleEventName): boolean {
    return (event === 'limit:mismatch' || event === 'permit:lost') && this.#gateHooks.hasListeners(event);
  }

  override emit<E extends LifecycleEventName>(event: E, payload: LifecycleEvents[E]): void {
    this.#gateHooks.emit(event, payload);
  }
}
