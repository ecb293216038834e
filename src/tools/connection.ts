import { boundedCall } from '../internal/bounded-call.js';

/** Which instance, and which task, a client is made for. */
export interface ConnectContext {
  /** The instance that asked for it; for a shared client, the one that asked first. */
  readonly instanceId: number;
  /** The task that asked for it; only for a client of scope `task`. */
  readonly taskId?: string;
  /** Aborts when nobody waits for the client any more. It says nothing about a client once made. */
  readonly signal: AbortSignal;
}

/** How a client comes and goes. */
export interface ConnectionSteps<Client> {
  readonly connect: (context: ConnectContext) => Client | PromiseLike<Client>;
  readonly disconnect: (client: Client, signal: AbortSignal) => unknown;
  /** Waits for a farewell, but not too long. Must settle, and must not reject. */
  readonly seeOff: (farewell: (signal: AbortSignal) => unknown) => Promise<void>;
}

/** One making of a client, and how many wait for it. */
interface Flight<Client> {
  readonly controller: AbortController;
  readonly client: Promise<Client>;
  waiters: number;
}

type State<Client> =
  | { readonly kind: 'idle' }
  | { readonly kind: 'connecting'; readonly flight: Flight<Client> }
  | { readonly kind: 'open'; readonly client: Client }
  | { readonly kind: 'closed'; readonly reason: unknown };

/**
 * The place of one client, whichever its scope.
 *
 * Invariants:
 * - At most one client is open, and it is made once however many ask at once.
 * - A failure is not kept: the next to ask tries again.
 * - One waiter's abort ends its own waiting; the last one's ends the making.
 * - Every client made is let go exactly once: at `close`, or on arrival if nobody wants it by then.
 * - `close` settles when nothing of any client is left, also of those that were given up while they were being made.
 */
export class Connection<Client> {
  readonly #steps: ConnectionSteps<Client>;
  /** The makings that are not over, those that were given up among them. They never reject. */
  readonly #landings = new Set<Promise<void>>();
  #state: State<Client> = { kind: 'idle' };
  #gone: Promise<void> | undefined;

  constructor(steps: ConnectionSteps<Client>) {
    this.#steps = steps;
  }

  /** The client: made now, being made, or made before. Rejects as `connect` does, or with `asked.signal.reason`. */
  get(asked: ConnectContext): Promise<Client> {
    if (asked.signal.aborted) return Promise.reject(asked.signal.reason);
    switch (this.#state.kind) {
      case 'open':
        return Promise.resolve(this.#state.client);
      case 'closed':
        return Promise.reject(this.#state.reason);
      case 'connecting':
        return this.#join(this.#state.flight, asked.signal);
      case 'idle':
        return this.#join(this.#start(asked), asked.signal);
    }
  }

  /** Calls `use` with the client, if there is one now. */
  whenOpen<R>(use: (client: Client) => R): R | undefined {
    return this.#state.kind === 'open' ? use(this.#state.client) : undefined;
  }

  /** Lets the client go, for good: whoever waits or asks later is rejected with `reason`. Never rejects itself. */
  close(reason: unknown): Promise<void> {
    this.#gone ??= this.#close(reason);
    return this.#gone;
  }

  async #close(reason: unknown): Promise<void> {
    const state = this.#state;
    this.#state = { kind: 'closed', reason };
    if (state.kind === 'connecting') state.flight.controller.abort(reason);
    const landings = [...this.#landings].map((landing) => this.#steps.seeOff(() => landing));
    await Promise.all(state.kind === 'open' ? [this.#letGo(state.client), ...landings] : landings);
  }

  #start(asked: ConnectContext): Flight<Client> {
    const controller = new AbortController();
    const making = (async () => this.#steps.connect({ ...asked, signal: controller.signal }))();
    // Who waits does not wait for code that ignores its signal.
    const client = unlimited(() => making, controller.signal);
    const flight: Flight<Client> = { controller, client, waiters: 0 };
    this.#state = { kind: 'connecting', flight };
    const landing = making
      .then(
        async (made) => {
          if (this.#isUnderWay(flight)) this.#state = { kind: 'open', client: made };
          else await this.#letGo(made);
        },
        () => {
          if (this.#isUnderWay(flight)) this.#state = { kind: 'idle' };
        },
      )
      .finally(() => this.#landings.delete(landing));
    this.#landings.add(landing);
    return flight;
  }

  #letGo(client: Client): Promise<void> {
    return this.#steps.seeOff((signal) => this.#steps.disconnect(client, signal));
  }

  async #join(flight: Flight<Client>, signal: AbortSignal): Promise<Client> {
    flight.waiters++;
    try {
      return await unlimited(() => flight.client, signal);
    } finally {
      flight.waiters--;
      if (flight.waiters === 0 && this.#isUnderWay(flight)) {
        this.#state = { kind: 'idle' };
        flight.controller.abort(signal.reason);
      }
    }
  }

  #isUnderWay(flight: Flight<Client>): boolean {
    return this.#state.kind === 'connecting' && this.#state.flight === flight;
  }
}

/** A call that only its signal bounds. */
function unlimited<T>(callback: () => Promise<T>, signal: AbortSignal): Promise<T> {
  return boundedCall(callback, { signal, timeoutError: () => new Error('This call has no deadline') });
}
