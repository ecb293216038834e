import { boundedCall } from '../internal/abort.js';
import { ConnectionCut } from './stub-call.js';

/** A sandbox of a `StubE2b`. */
export interface StubSandbox {
  readonly sandboxId: string;
  readonly templateId: string;
  readonly metadata: Readonly<Record<string, string>>;
  readonly state: 'running' | 'paused';
  readonly startedAt: Date;
  /** When it is killed or paused, unless its time is extended. */
  readonly endAt: Date;
}

/** A sandbox as it is now, as plain data. */
export const dataOf = (sandbox: StubSandbox): StubSandbox => {
  const { sandboxId, templateId, metadata, state, startedAt, endAt } = sandbox;
  return { sandboxId, templateId, metadata, state, startedAt, endAt };
};

/** The parameters of a new sandbox. */
export interface SandboxParameters {
  readonly templateId: string;
  readonly metadata: Readonly<Record<string, string>>;
  readonly timeoutMs: number;
  readonly pauseAtEnd: boolean;
}

/** One sandbox: it runs until its time is up or it is killed, and can be paused and resumed. */
export class Sandbox implements StubSandbox {
  readonly sandboxId: string;
  readonly templateId: string;
  readonly metadata: Readonly<Record<string, string>>;
  readonly startedAt: Date;
  /** Aborts when it stops running, which interrupts its execution. */
  #stopped = new AbortController();
  #state: 'running' | 'paused' = 'running';
  #endAt: Date;
  #timer: NodeJS.Timeout;
  #executions = 0;
  readonly #onTimeUp: () => void;

  constructor(sandboxId: string, parameters: SandboxParameters, onTimeUp: () => void) {
    this.sandboxId = sandboxId;
    this.templateId = parameters.templateId;
    this.metadata = parameters.metadata;
    this.#onTimeUp = onTimeUp;
    [this.#endAt, this.#timer] = this.#endIn(parameters.timeoutMs);
    this.startedAt = new Date(this.#endAt.getTime() - parameters.timeoutMs);
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

  /** The result of `work`, unless the sandbox stops first. */
  whileRunning<T>(work: () => Promise<T>): Promise<T> {
    return boundedCall(work, { signal: this.#stopped.signal });
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
    this.#stopped = new AbortController();
    this.setTimeout(timeoutMs);
  }

  stop(): void {
    clearTimeout(this.#timer);
    this.#stopped.abort(new ConnectionCut('The sandbox stopped'));
  }

  #endIn(timeoutMs: number): [Date, NodeJS.Timeout] {
    return [new Date(Date.now() + timeoutMs), setTimeout(this.#onTimeUp, timeoutMs).unref()];
  }
}

/**
 * All sandboxes of a stub, and the account's limit.
 *
 * Invariant: the number of sandboxes that are running, being created, or deleted less than the lag ago never exceeds `cap`.
 * Paused ones do not count.
 */
export class SandboxFleet {
  readonly #cap: number;
  /** How long a deleted sandbox still counts. */
  readonly #lagMs: number;
  readonly #sandboxes = new Map<string, Sandbox>();
  #counted = 0;
  #alive = 0;
  #peakAlive = 0;
  #created = 0;

  constructor(cap: number, lagMs: number) {
    this.#cap = cap;
    this.#lagMs = lagMs;
  }

  get cap(): number {
    return this.#cap;
  }

  /** Running and paused sandboxes, oldest first. */
  get all(): readonly Sandbox[] {
    return [...this.#sandboxes.values()];
  }

  /** Maximum number that were being created or running at once. */
  get peakAlive(): number {
    return this.#peakAlive;
  }

  get(sandboxId: string): Sandbox | undefined {
    return this.#sandboxes.get(sandboxId);
  }

  /** Reserves a place; returns false if the limit is reached. */
  reserve(): boolean {
    if (this.#counted >= this.#cap) return false;
    this.#counted++;
    this.#alive++;
    this.#peakAlive = Math.max(this.#peakAlive, this.#alive);
    return true;
  }

  /** Frees the place of a sandbox that no longer runs, or was not created. */
  unreserve(lagMs = 0): void {
    this.#alive--;
    if (lagMs === 0) this.#counted--;
    else setTimeout(() => this.#counted--, lagMs).unref();
  }

  /** Creates a sandbox in a reserved place. */
  create(parameters: SandboxParameters): Sandbox {
    const sandboxId = `stub${++this.#created}`;
    const onTimeUp = (): void => {
      if (parameters.pauseAtEnd) this.pause(sandbox);
      else this.kill(sandbox);
    };
    const sandbox = new Sandbox(sandboxId, parameters, onTimeUp);
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
