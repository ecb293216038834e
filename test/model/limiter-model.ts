/** A request as the model sees it. */
export interface ModelRequest {
  readonly id: number;
  readonly weight: number;
  readonly priority: number;
  readonly tenant: string | undefined;
  /** Which of the shared signals it has. */
  readonly signal: number | undefined;
  readonly timeoutMs: number | undefined;
}

interface Waiting extends ModelRequest {
  readonly deadlineMs: number;
}

/** What became of a request: a permit, or the reason why not. */
export type ModelOutcome = 'granted' | 'aborted' | 'timeout' | 'closed' | 'queue-full' | 'too heavy';

/**
 * What a ConcurrencyLimiter promises, said as plainly as possible: arrays, looked through from the start each time. It
 * knows nothing of promises, so it says at once what the limiter must have done by the end of the step.
 */
export class LimiterModel {
  active = 0;
  acquired = 0;
  rejected = 0;
  paused = false;
  isOpen = true;
  waiting: Waiting[] = [];
  readonly outcomes = new Map<number, ModelOutcome>();
  /** Those who waited and were granted, in the order of the grants. */
  readonly grantedAfterWaiting: number[] = [];
  readonly #aborted = new Set<number>();
  /** For each priority the tenants who wait, the next to be served first. */
  readonly #turns = new Map<number, (string | undefined)[]>();
  #nowMs = 0;

  constructor(
    public maxConcurrent: number,
    public maxQueue: number,
    readonly queueTimeoutMs?: number,
  ) {}

  /** What the limiter must count. */
  stats() {
    return {
      maxConcurrent: this.maxConcurrent,
      active: this.active,
      queued: this.waiting.length,
      acquired: this.acquired,
      rejected: this.rejected,
      paused: this.paused,
      closed: !this.isOpen,
    };
  }

  /** Another one in the same state, of which nothing has been told yet. */
  clone(): LimiterModel {
    const copy = new LimiterModel(this.maxConcurrent, this.maxQueue, this.queueTimeoutMs);
    copy.active = this.active;
    copy.paused = this.paused;
    copy.isOpen = this.isOpen;
    copy.waiting = [...this.waiting];
    for (const signal of this.#aborted) copy.#aborted.add(signal);
    for (const [priority, turns] of this.#turns) copy.#turns.set(priority, [...turns]);
    copy.#nowMs = this.#nowMs;
    return copy;
  }

  /** Asks for a permit, waiting for it if need be. Says whether it has it at once. */
  request(request: ModelRequest): boolean {
    const { id, weight, priority, tenant, signal, timeoutMs = this.queueTimeoutMs } = request;
    // Wrong options are no request at all: they do not count as turned away.
    if (weight > this.maxConcurrent) this.outcomes.set(id, 'too heavy');
    else if (signal !== undefined && this.#aborted.has(signal)) this.#reject(id, 'aborted');
    else if (this.#isFree(weight, priority)) this.#grant(request);
    else if (!this.isOpen) this.#reject(id, 'closed');
    else if (this.waiting.length >= this.maxQueue) this.#reject(id, 'queue-full');
    else if (timeoutMs === 0) this.#reject(id, 'timeout');
    else {
      this.waiting.push({ ...request, deadlineMs: this.#nowMs + (timeoutMs ?? Number.POSITIVE_INFINITY) });
      const turns = this.#turns.get(priority) ?? [];
      if (!turns.includes(tenant)) turns.push(tenant);
      this.#turns.set(priority, turns);
    }
    return this.outcomes.get(id) === 'granted';
  }

  /** Takes a permit if that needs no waiting. Says whether it did. */
  tryRequest(request: ModelRequest): boolean {
    const free = this.waiting.length === 0 && this.#isFree(request.weight, 0);
    if (free) this.#grant(request);
    return free;
  }

  release(weight: number): void {
    this.active -= weight;
    this.#admit();
  }

  /** A run whose signal aborted between the grant and the start: it does not begin, and its permit comes back. */
  takeBackUnbegun(id: number, weight: number): void {
    this.outcomes.set(id, 'aborted');
    this.grantedAfterWaiting.splice(this.grantedAfterWaiting.indexOf(id), 1);
    this.release(weight);
  }

  abort(signal: number): void {
    this.#aborted.add(signal);
    for (const waiter of this.waiting.filter((one) => one.signal === signal)) {
      this.#leave(waiter);
      this.#reject(waiter.id, 'aborted');
    }
    this.#admit();
  }

  /** A new signal in place of this one: those who wait with the old one can no longer be aborted. */
  renew(signal: number): void {
    this.#aborted.delete(signal);
    this.waiting = this.waiting.map((one) => (one.signal === signal ? { ...one, signal: undefined } : one));
  }

  advance(ms: number): void {
    const untilMs = this.#nowMs + ms;
    for (;;) {
      const due = Math.min(...this.waiting.map(({ deadlineMs }) => deadlineMs));
      if (due > untilMs) break;
      const late = this.waiting.find(({ deadlineMs }) => deadlineMs === due) as Waiting;
      this.#leave(late);
      this.#reject(late.id, 'timeout');
      this.#admit();
    }
    this.#nowMs = untilMs;
  }

  resize(maxConcurrent: number): void {
    this.maxConcurrent = maxConcurrent;
    this.#admit();
  }

  pause(): void {
    this.paused = true;
  }

  resume(): void {
    this.paused = false;
    this.#admit();
  }

  close(drain: boolean): void {
    this.isOpen = false;
    if (!drain) {
      for (const waiter of [...this.waiting]) {
        this.#leave(waiter);
        this.#reject(waiter.id, 'closed');
      }
    } else this.resume();
  }

  #fits(weight: number): boolean {
    return !this.paused && (this.active === 0 || this.active + weight <= this.maxConcurrent);
  }

  #isFree(weight: number, priority: number): boolean {
    return this.isOpen && this.waiting.every((one) => one.priority < priority) && this.#fits(weight);
  }

  #grant({ id, weight }: ModelRequest): void {
    this.active += weight;
    this.acquired++;
    this.outcomes.set(id, 'granted');
  }

  #reject(id: number, outcome: ModelOutcome): void {
    this.rejected++;
    this.outcomes.set(id, outcome);
  }

  #admit(): void {
    for (let next = this.#next(); next !== undefined && this.#fits(next.weight); next = this.#next()) {
      const turns = this.#turns.get(next.priority) as (string | undefined)[];
      turns.push(turns.shift());
      this.#leave(next);
      this.#grant(next);
      this.grantedAfterWaiting.push(next.id);
    }
  }

  #next(): Waiting | undefined {
    const priority = Math.max(...this.waiting.map((one) => one.priority));
    const tenant = this.#turns.get(priority)?.[0];
    return this.waiting.find((one) => one.priority === priority && one.tenant === tenant);
  }

  #leave({ id, priority, tenant }: Waiting): void {
    this.waiting = this.waiting.filter((one) => one.id !== id);
    if (this.waiting.some((one) => one.priority === priority && one.tenant === tenant)) return;
    const turns = this.#turns.get(priority) ?? [];
    this.#turns.set(
      priority,
      turns.filter((one) => one !== tenant),
    );
  }
}
