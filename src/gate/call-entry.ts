import { AsyncResource } from 'node:async_hooks';
import { GateTimeoutError } from '../errors.js';
import { boundedCall } from '../internal/bounded-call.js';
import { nowMs } from '../internal/clock.js';
import type { Permit } from '../limiter/limiter.js';
import { giveBack } from './attempt.js';
import type { CallBounds } from './call-scope.js';
import type { CallTeller } from './call-teller.js';
import type { GateCore } from './gate-core.js';
import type { KeyUse } from './gate-key.js';
import type { GateCallOptions } from './gate-options.js';

/** What an attempt holds. */
export interface Entered {
  readonly permit: Permit | undefined;
  readonly use: KeyUse;
}

/** Whose way it is. */
export interface CallEntryOptions {
  readonly core: GateCore;
  readonly options: GateCallOptions;
  readonly bounds: CallBounds;
  readonly teller: CallTeller;
  /** Told how long no key can serve; may end the call by its signal. */
  readonly onClosed: (forMs: number) => void;
}

/**
 * One call's way to an attempt: while all keys rest it waits, then for a permit, then for a start.
 *
 * Invariants:
 * - While all keys rest it holds nothing: neither a permit nor a place before others' in a limiter's line.
 * - A permit that it got and does not use is given back in that step.
 */
export class CallEntry {
  readonly #core: GateCore;
  readonly #options: GateCallOptions;
  readonly #bounds: CallBounds;
  readonly #teller: CallTeller;
  readonly #onClosed: (forMs: number) => void;

  constructor({ core, options, bounds, teller, onClosed }: CallEntryOptions) {
    this.#core = core;
    this.#options = options;
    this.#bounds = bounds;
    this.#teller = teller;
    this.#onClosed = onClosed;
  }

  /** Waits for everything that an attempt needs. Whoever is sent back keeps its `turn`. */
  async enter(turn: number): Promise<Entered> {
    for (;;) {
      const permit = await this.#admission(turn);
      try {
        const use = await this.#start();
        if (use !== undefined) return { permit, use };
      } catch (error) {
        giveBack(permit, 'ignored');
        throw error;
      }
      giveBack(permit, 'ignored');
    }
  }

  /** Waits out a rest of all keys, if there is one, and for a permit. */
  async #admission(turn: number): Promise<Permit | undefined> {
    const { ring, restRoom } = this.#core;
    const { signal } = this.#bounds;
    signal.throwIfAborted();
    const { priority = 0, weight = 1 } = this.#options;
    const closedMs = ring.opensInMs(nowMs(), weight);
    if (closedMs > 0) {
      this.#onClosed(closedMs);
      signal.throwIfAborted();
      this.#teller.throttled('cooldown', closedMs);
    } else if (restRoom.isEmpty) {
      return this.#permit();
    }
    return restRoom.enter({ weight, priority, turn, signal }, () => this.#permit());
  }

  async #permit(): Promise<Permit | undefined> {
    const { limiter, settings } = this.#core;
    const bounds = this.#bounds;
    if (limiter === undefined) return undefined;
    const { priority, tenant, taskId, requestId } = this.#options;
    // A limiter from elsewhere may not heed the signal.
    const permit = await boundedCall<Permit>(
      (signal) =>
        limiter.acquire({
          signal,
          ...(priority === undefined ? {} : { priority }),
          ...(tenant === undefined ? {} : { tenant }),
          ...(taskId === undefined ? {} : { taskId }),
          ...(requestId === undefined ? {} : { requestId }),
        }),
      {
        signal: bounds.signal,
        timeoutError: (ms) => new GateTimeoutError(settings.name, 'call', ms),
        onLate: (late) => giveBack(late, 'ignored'),
      },
    );
    if (!bounds.signal.aborted) return permit;
    giveBack(permit, 'ignored');
    throw bounds.signal.reason;
  }

  /** Waits for a key with room in all its windows; `undefined` if all keys rest now. */
  async #start(): Promise<KeyUse | undefined> {
    const { turnstile, ring, settings } = this.#core;
    const bounds = this.#bounds;
    const { weight = 1, priority = 0 } = this.#options;
    const use = await turnstile.enter({
      weight,
      priority,
      signal: bounds.signal,
      onClosed: this.#onClosed,
      // It runs in the step of whoever made room or came next: the event belongs to the context of this caller.
      onWait: settings.hooks.hears('call:throttled')
        ? AsyncResource.bind(({ forMs, reason }) => this.#teller.throttled(reason, forMs))
        : undefined,
    });
    if (!bounds.signal.aborted) return use;
    if (use !== undefined) ring.end(use);
    throw bounds.signal.reason;
  }
}
