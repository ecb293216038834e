import { finiteNumber } from '../internal/validate.js';
import type { StubCall } from './stub-call.js';

/** Counts of a set of calls. */
export interface StubTally {
  /** Received calls. */
  readonly calls: number;
  /** Calls in flight now. */
  readonly inFlight: number;
  /** Maximum of `inFlight`. */
  readonly peakInFlight: number;
  /** Calls that ended before their response was complete. */
  readonly disconnects: number;
  /** Responses by HTTP status, including those that were cut later. */
  readonly statuses: Readonly<Record<number, number>>;
}

/** Counts of a stub service: all calls, by route and by key. */
export interface StubStats extends StubTally {
  readonly byRoute: Readonly<Record<string, StubTally>>;
  readonly byKey: Readonly<Record<string, StubTally>>;
}

/** Selects calls; all if empty. */
export interface CallFilter {
  /** A route as in `stats().byRoute`. */
  readonly route?: string;
  readonly key?: string;
}

class Tally {
  calls = 0;
  inFlight = 0;
  peakInFlight = 0;
  disconnects = 0;
  statuses: Record<number, number> = {};

  arrive(): void {
    this.calls++;
    this.inFlight++;
    this.peakInFlight = Math.max(this.peakInFlight, this.inFlight);
  }

  answer(status: number): void {
    this.statuses[status] = (this.statuses[status] ?? 0) + 1;
  }

  depart(disconnected: boolean): void {
    this.inFlight--;
    if (disconnected) this.disconnects++;
  }

  snapshot(): StubTally {
    return { ...this, statuses: { ...this.statuses } };
  }

  /** Resets the counts. Calls in flight remain counted, since they will depart. */
  reset(): void {
    Object.assign(this, new Tally(), {
      calls: this.inFlight,
      inFlight: this.inFlight,
      peakInFlight: this.inFlight,
    });
  }
}

const snapshots = (tallies: Map<string, Tally>): Record<string, StubTally> =>
  Object.fromEntries([...tallies].map(([name, tally]) => [name, tally.snapshot()]));

/**
 * Counts the calls of a stub service. A call arrives with its request headers and departs just before the last byte of its
 * response is sent, so a client that then starts its next call is never counted twice.
 */
export class CallLedger {
  readonly #total = new Tally();
  readonly #byRoute = new Map<string, Tally>();
  readonly #byKey = new Map<string, Tally>();
  // Kept for all calls, since `peakStartsPer` must not miss one. About 50 bytes each.
  #starts: { readonly atMs: number; readonly route: string; readonly key: string | undefined }[] = [];
  #log: StubCall[] = [];
  readonly #logSize: number;

  constructor(logSize: number) {
    this.#logSize = logSize;
  }

  get log(): readonly StubCall[] {
    return this.#log.slice(-this.#logSize);
  }

  arrive(call: StubCall): void {
    for (const tally of this.#tallies(call)) tally.arrive();
    this.#starts.push({ atMs: call.startedAtMs, route: call.route, key: call.key });
    this.#log.push(call);
    // Trimmed when twice as long: shifting the array for each call would be quadratic.
    if (this.#log.length > 2 * this.#logSize) this.#log = this.#log.slice(-this.#logSize);
  }

  answer(call: StubCall, status: number): void {
    for (const tally of this.#tallies(call)) tally.answer(status);
  }

  depart(call: StubCall, disconnected: boolean): void {
    for (const tally of this.#tallies(call)) tally.depart(disconnected);
  }

  stats(): StubStats {
    return { ...this.#total.snapshot(), byRoute: snapshots(this.#byRoute), byKey: snapshots(this.#byKey) };
  }

  /** The maximum number of calls that started within any half-open window of `windowMs`. */
  peakStartsPer(windowMs: number, filter: CallFilter): number {
    finiteNumber('windowMs', windowMs, Number.MIN_VALUE, Number.MAX_VALUE);
    const starts = this.#starts.filter(
      ({ route, key }) =>
        (filter.route === undefined || filter.route === route) &&
        (filter.key === undefined || filter.key === key),
    );
    let peak = 0;
    let first = 0;
    for (const [last, { atMs }] of starts.entries()) {
      while (atMs - starts[first]!.atMs >= windowMs) first++;
      peak = Math.max(peak, last - first + 1);
    }
    return peak;
  }

  reset(): void {
    for (const tally of [this.#total, ...this.#byRoute.values(), ...this.#byKey.values()]) tally.reset();
    this.#starts = [];
    this.#log = [];
  }

  *#tallies(call: StubCall): Generator<Tally> {
    yield this.#total;
    yield tallyOf(this.#byRoute, call.route);
    if (call.key !== undefined) yield tallyOf(this.#byKey, call.key);
  }
}

function tallyOf(tallies: Map<string, Tally>, name: string): Tally {
  const tally = tallies.get(name) ?? new Tally();
  tallies.set(name, tally);
  return tally;
}
