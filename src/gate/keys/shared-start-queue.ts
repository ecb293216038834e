import type { AbortListener } from '../../internal/abort.js';
import { settleInTurn } from '../../internal/clock.js';
import type { SharedStart, SharedStarts } from '../shared-limits.js';
import { timerMs } from '../wait.js';
import type { KeyReservation } from './api-key.js';
import type { KeyRing } from './key-ring.js';
import type { StartOptions, Starts } from './start-queue.js';

/**
 * The start queue of a gate whose starts are shared: the order, the windows and the keys are the server's.
 *
 * Invariants:
 * - While a call waits for a start, the server knows of it; one that leaves is withdrawn in that step.
 * - Calls wait here only for windows or for a probe: when all keys that could serve them go into cooldown, they are sent
 *   back, and release their permits.
 */
export class SharedStartQueue implements Starts {
  readonly #ring: KeyRing;
  readonly #isLimiterPaused: () => boolean;
  readonly #starts: SharedStarts;
  readonly #requests = new Set<SharedRequest>();
  #timer: NodeJS.Timeout | undefined;

  constructor(ring: KeyRing, isLimiterPaused: () => boolean, starts: SharedStarts) {
    this.#ring = ring;
    this.#isLimiterPaused = isLimiterPaused;
    this.#starts = starts;
  }

  get queued(): number {
    return this.#requests.size;
  }

  /** Nothing starts without the server. */
  tryEnter(): undefined {
    return undefined;
  }

  enter(options: StartOptions): Promise<KeyReservation | undefined> {
    return new Promise((resolve, reject) => {
      const settle = (): void => {
        this.#requests.delete(request);
        if (this.#requests.size === 0) clearTimeout(this.#timer);
        options.bounds.removeEventListener('abort', request);
      };
      const withdraw = (): void => {
        settle();
        request.withdraw?.();
      };
      const request: SharedRequest = {
        options,
        withdraw: undefined,
        sendBack: () => {
          withdraw();
          settleInTurn(() => resolve(undefined));
        },
        handleEvent: () => {
          withdraw();
          settleInTurn(() => reject(options.bounds.reason));
        },
        onGrant: (start) => {
          settle();
          const reservation = this.#ring.takeShared(start, options.weight);
          if (reservation === undefined) start.cancel();
          settleInTurn(() => resolve(reservation));
        },
        onReject: (error) => {
          settle();
          settleInTurn(() => reject(error));
        },
        onWait: (retryAfterMs) => options.onWait?.({ retryAfterMs, reason: 'rate' }),
      };
      this.#requests.add(request);
      options.bounds.addEventListener('abort', request);
      this.#offer(request);
    });
  }

  /** Something has changed: sends back who would wait for the end of a cooldown, and asks for those that were held back. */
  check(): void {
    const now = this.#ring.now();
    for (const request of this.#requests) {
      if (this.#isLimiterPaused() || this.#ring.retryAfterMs(now, request.options.weight) > 0)
        request.sendBack();
      else this.#offer(request);
    }
  }

  #offer(request: SharedRequest): void {
    if (request.withdraw !== undefined) return;
    const heldMs = this.#ring.heldMs();
    if (heldMs > 0) {
      clearTimeout(this.#timer);
      if (Number.isFinite(heldMs)) this.#timer = setTimeout(() => this.check(), timerMs(heldMs));
      return;
    }
    const { weight, priority } = request.options;
    // Before the server is asked: it may answer at once.
    request.withdraw = () => {};
    const withdraw = this.#starts.request(weight, priority, request);
    if (this.#requests.has(request)) request.withdraw = withdraw;
    else withdraw();
  }
}

interface SharedRequest extends AbortListener {
  readonly options: StartOptions;
  /** Ends the wait on the server; `undefined` before it was asked. */
  withdraw: (() => void) | undefined;
  sendBack(): void;
  onGrant(start: SharedStart): void;
  onReject(error: unknown): void;
  onWait(retryAfterMs: number): void;
}
