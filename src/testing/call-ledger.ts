import { finiteNumber } from '../internal/validate.js';
import type { StubCall } from './stub-call.js';

/** What was counted of some calls. */
export interface StubTally {
  /** Calls that arrived. */
  readonly calls: number;
  /** Calls under way now. */
  readonly inFlight: number;
  /** The most that were ever under way together. */
  readonly peakInFlight: number;
  /** Calls whose client left, or was cut off, before the answer was complete. */
  readonly disconnects: number;
  /** Answers by their HTTP status, among them those that were cut off later. */
  readonly statuses: Readonly<Record<number, number>>;
}

/** What a stub service counted: of all calls, of each route and of each key. */
export interface StubStats extends StubTally {
  readonly byRoute: Readonly<Record<string, StubTally>>;
  readonly byKey: Readonly<Record<string, StubTally>>;
}

/** Which calls are meant; all, if left out. */
export interface CallFilter {
  /** A route as it stands in `stats().byRoute`. */
  readonly route?: string;
  readonly key?: string;
}

class Tally {
  #calls = 0;
  #inFlight = 0;
  #peak = 0;
  #disconnects = 0;
  readonly #statuses = new Map<number, number>();

  arrive(): void {
    this.#calls++;
    this.#inFlight++;
    this.#peak = Math.max(this.#peak, this.#inFlight);
  }

  answer(status: number): void {
    this.#statuses.set(status, (this.#statuses.get(status) ?? 0) + 1);
  }

  depart(disconnected: boolean): void {
    this.#inFlight--;
    if (disconnected) this.#disconnects++;
  }

  /** Forgets what is over. Calls under way stay counted, since they will depart. */
  reset(): void {
    this.#calls = this.#inFlight;
    this.#peak = this.#inFlight;
    this.#disconnects = 0;
    this.#statuses.clear();
  }

  snapshot(): StubTally {
    return {
      calls: this.#calls,
      inFlight: this.#inFlight,
      peakInFlight: this.#peak,
      disconnects: this.#disconnects,
      statuses: Object.fromEntries(this.#statuses),
    };
  }
}

const snapshots = (tallies: Map<string, Tally>): Record<string, StubTally> =>
  Object.fromEntries([...tallies].map(([name, tally]) => [name, tally.snapshot()]));

/**
 * What a stub service saw. A call arrives with its request headers and departs with the last byte of its answer, just
 * before that byte is sent: a client that starts its next call on receiving it is never counted twice.
 */
export class CallLedger {
  readonly #total = new Tally();
  readonly #byRoute = new Map<string, Tally>();
  readonly #byKey = new Map<string, Tally>();
  // Kept for every call, however small the log: a peak over a window must not miss one. About 50 bytes each.
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
    // Cut in halves, not call by call: moving a whole array each time would make a long run quadratic.
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

  /** The most calls that started within `windowMs`, wherever the window is laid: from a start, up to but excluding its end. */
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
  let tally = tallies.get(name);
  if (tally === undefined) {
    tally = new Tally();
    tallies.set(name, tally);
  }
  return tally;
}
