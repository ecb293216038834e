import { ConnectionCut } from './stub-call.js';

/** A sandbox as a test sees it. */
export interface StubSandbox {
  readonly sandboxId: string;
  readonly templateId: string;
  readonly metadata: Readonly<Record<string, string>>;
  readonly state: 'running' | 'paused';
  readonly startedAt: Date;
  /** When it is killed, or paused, unless its time is extended. */
  readonly endAt: Date;
}

/** How a sandbox is asked for. */
export interface SandboxOrder {
  readonly templateId: string;
  readonly metadata: Readonly<Record<string, string>>;
  readonly timeoutMs: number;
  readonly pauseAtEnd: boolean;
}

/** One sandbox: runs until its time is up or it is killed, and can be paused and resumed. */
export class Sandbox implements StubSandbox {
  readonly sandboxId: string;
  readonly templateId: string;
  readonly metadata: Readonly<Record<string, string>>;
  readonly startedAt: Date;
  /** Rejects when it stops running: what it was working on is cut off. */
  #stopped: PromiseWithReject;
  #state: 'running' | 'paused' = 'running';
  #endAt: Date;
  #timer: NodeJS.Timeout;
  #executions = 0;
  readonly #onTimeUp: () => void;

  constructor(sandboxId: string, order: SandboxOrder, onTimeUp: () => void) {
    this.sandboxId = sandboxId;
    this.templateId = order.templateId;
    this.metadata = order.metadata;
    this.#onTimeUp = onTimeUp;
    this.#stopped = rejectable();
    [this.#endAt, this.#timer] = this.#endIn(order.timeoutMs);
    this.startedAt = new Date(this.#endAt.getTime() - order.timeoutMs);
  }

  get state(): 'running' | 'paused' {
    return this.#state;
  }

  get endAt(): Date {
    return this.#endAt;
  }

  nextExecution(): number {
    return ++this.#executions;
  }

  /** What `work` gives, unless the sandbox stops first. */
  whileRunning<T>(work: Promise<T>): Promise<T> {
    return Promise.race([work, this.#stopped.promise]);
  }

  setTimeout(timeoutMs: number): void {
    clearTimeout(this.#timer);
    [this.#endAt, this.#timer] = this.#endIn(timeoutMs);
  }

  pause(): void {
    this.#state = 'paused';
    this.stop();
  }

  resume(timeoutMs: number): void {
    this.#state = 'running';
    this.#stopped = rejectable();
    this.setTimeout(timeoutMs);
  }

  stop(): void {
    clearTimeout(this.#timer);
    this.#stopped.reject(new ConnectionCut('The sandbox stopped'));
  }

  #endIn(timeoutMs: number): [Date, NodeJS.Timeout] {
    return [new Date(Date.now() + timeoutMs), setTimeout(this.#onTimeUp, timeoutMs).unref()];
  }
}

interface PromiseWithReject {
  readonly promise: Promise<never>;
  readonly reject: (reason: Error) => void;
}

function rejectable(): PromiseWithReject {
  let reject: (reason: Error) => void = () => {};
  const promise = new Promise<never>((_, rejectIt) => {
    reject = rejectIt;
  });
  // Mostly nobody is working when a sandbox stops.
  promise.catch(() => {});
  return { promise, reject };
}

/**
 * All sandboxes of a stub, and the account's cap on them.
 *
 * Invariant: running sandboxes, those being created, and those deleted less than the lag ago are never more than `cap`
 * together. Paused ones do not count.
 */
export class SandboxFleet {
  readonly #cap: number;
  readonly #lagMs: number;
  readonly #sandboxes = new Map<string, Sandbox>();
  #counted = 0;
  #alive = 0;
  #peakAlive = 0;
  #made = 0;

  /** `lagMs`: how long a deleted sandbox still counts. */
  constructor(cap: number, lagMs: number) {
    this.#cap = cap;
    this.#lagMs = lagMs;
  }

  get cap(): number {
    return this.#cap;
  }

  /** Running and paused ones, oldest first. */
  get all(): readonly Sandbox[] {
    return [...this.#sandboxes.values()];
  }

  /** The most that were being created and running at once. */
  get peakAlive(): number {
    return this.#peakAlive;
  }

  get(sandboxId: string): Sandbox | undefined {
    return this.#sandboxes.get(sandboxId);
  }

  /** Takes a place under the cap; false if there is none. */
  reserve(): boolean {
    if (this.#counted >= this.#cap) return false;
    this.#counted++;
    this.#alive++;
    this.#peakAlive = Math.max(this.#peakAlive, this.#alive);
    return true;
  }

  /** Gives back the place of a sandbox that does not run any more, or never came to be. */
  unreserve(lagMs = 0): void {
    this.#alive--;
    if (lagMs === 0) this.#counted--;
    else setTimeout(() => this.#counted--, lagMs).unref();
  }

  /** Makes a sandbox in the place that was reserved for it. */
  create(order: SandboxOrder): Sandbox {
    const sandboxId = `stub${++this.#made}`;
    const onTimeUp = (): void => {
      if (order.pauseAtEnd) this.pause(sandbox);
      else this.kill(sandbox);
    };
    const sandbox = new Sandbox(sandboxId, order, onTimeUp);
    this.#sandboxes.set(sandboxId, sandbox);
    return sandbox;
  }

  pause(sandbox: Sandbox): void {
    sandbox.pause();
    this.unreserve();
  }

  kill(sandbox: Sandbox): void {
    this.#sandboxes.delete(sandbox.sandboxId);
    const ran = sandbox.state === 'running';
    sandbox.stop();
    if (ran) this.unreserve(this.#lagMs);
  }

  resetPeak(): void {
    this.#peakAlive = this.#alive;
  }
}
