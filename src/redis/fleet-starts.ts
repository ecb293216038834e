import { GateClosedError, type LimitsUnavailableError } from '../errors.js';
import type { RateWindow } from '../gate/keys/sliding-window.js';
import type {
  CooldownReason,
  SharedGateConfig,
  SharedKey,
  SharedStart,
  SharedStartListener,
  SharedStarts,
} from '../gate/shared-limits.js';
import { afterThisTurn, nowMs } from '../internal/clock.js';
import { summaryOf } from '../internal/error-summary.js';
import type { FleetStats } from '../limiter/limiter.js';
import { type CommandConnection, type Subscriber, scriptOf } from './client.js';
import { type FleetWindow, type Layout, layoutOf, OwnStarts } from './fleet-windows.js';
import { FleetMember, type MemberOwner, type Operation, operation } from './member.js';
import type { FleetOptions } from './options.js';
import { STARTS_SCRIPT } from './starts-script.js';

/** What a failover may lack of windows that it has kept. */
const MAX_LAG_MS = 10_000;
/** A cooldown that ends within this time has ended on the server's clock. */
const LATE_MS = 100;

const SCRIPT = /* @__PURE__ */ scriptOf(STARTS_SCRIPT);

/**
 * The starts of a gate, shared over Redis.
 *
 * Invariants:
 * - A start is reserved from its grant until its beginning is reported, and can begin only while the lease is certain: one
 *   reading of the clock decides both whether it begins and from when it counts.
 * - What has begun is reported until Redis has confirmed it, whatever becomes of the lease and of the connection.
 * - What this process has started is remembered for as long as its windows count it, to be reported again after a loss of
 *   data.
 * - What is not confirmed is sent again with the next join: cooldowns, restored keys, and corrections upwards.
 */
export class FleetStarts implements SharedStarts, MemberOwner {
  readonly member: FleetMember;
  readonly limit = Number.MAX_SAFE_INTEGER;
  readonly #config: SharedGateConfig;
  readonly #whenUnavailable: FleetOptions['whenUnavailable'];
  readonly #keyPrefix: string;
  #layout: Layout;
  #nextId = 0;
  readonly #waiting = new Map<string, StartWaiter>();
  /** Granted, and not begun. */
  readonly #reserved = new Map<string, FleetStart>();
  /** Begun, and not confirmed to be counted. */
  readonly #begun = new Map<string, FleetStart>();
  #unreported: FleetStart[] = [];
  /** What Redis counted as reserved when it listed that last, before the operations of the same batch. */
  #lastHeld: ReadonlySet<string> = new Set();
  #reportTimer: NodeJS.Timeout | undefined;
  /** What is to be reported again, by window: after a loss of data, and after a change of windows. */
  readonly #recounts = new Map<string, Operation>();
  #recounted = 0;
  #epochs = 0;
  /** Corrections upwards. One of unknown fate is repeated, since counting it twice is safe. */
  readonly #corrections = new Set<Operation>();
  readonly #restored = new Set<string>();
  readonly #own = new OwnStarts();
  /** Keys out of use as far as is known here, with the end on the monotonic clock. */
  readonly #closed = new Map<
    string,
    { readonly why: CooldownReason; readonly untilMs: number; readonly isConfirmed: boolean }
  >();
  #unavailable: LimitsUnavailableError | undefined;
  #retryAfterMs = -1;
  /** Reservations that were lost before their start began. */
  #lost = 0;
  /** The free part of each key's fullest window, as Redis last reported it. */
  readonly #free = new Map<string, number>();
  #closing: Promise<void> | undefined;

  constructor(
    config: SharedGateConfig,
    { prefix, leaseMs, commandTimeoutMs, whenUnavailable }: FleetOptions,
    connection: CommandConnection,
    subscriber: Subscriber,
  ) {
    this.#config = config;
    this.#whenUnavailable = whenUnavailable;
    this.#keyPrefix = `${encodeURIComponent(prefix)}:${encodeURIComponent(config.name)}:starts`;
    this.#layout = layoutOf(config.keys, config.sharedRate);
    this.member = new FleetMember(this, connection, subscriber, {
      source: config.name,
      keyPrefix: this.#keyPrefix,
      leaseMs,
      commandTimeoutMs,
      keepsShare: false,
      script: {
        script: SCRIPT,
        keys: () => this.#layout.windows.map(({ id }) => `{${this.#keyPrefix}}:window:${id}`),
        argument: () => this.#layout.argument,
      },
    });
  }

  get fleet(): FleetStats {
    const { active, queued, members, frozen } = this.member.figures;
    return { active, queued, members, available: this.member.isAvailable, frozen, lost: this.#lost };
  }

  request(weight: number, priority: number, listener: SharedStartListener): () => void {
    if (this.#unavailable !== undefined && this.#whenUnavailable === 'fail') {
      listener.onReject(this.#unavailable);
      return () => {};
    }
    const id = (this.#nextId++).toString(36);
    const waiter = new StartWaiter(
      id,
      weight,
      priority,
      listener,
      () => this.#waiting.has(id),
      (result) => this.#onAnswer(waiter, result),
    );
    this.#waiting.set(id, waiter);
    this.#sendReports();
    this.member.send(waiter.ask);
    return () => {
      if (this.#waiting.delete(id)) this.member.send(waiter.cancel);
    };
  }

  coolDown(key: string, why: CooldownReason, ms: number, inFlight: number): void {
    this.#closed.set(key, { why, untilMs: nowMs() + ms, isConfirmed: false });
    this.#restored.delete(key);
    this.#sendCooldown(key, why, ms, inFlight);
  }

  freeOf(key: string): number {
    return this.#free.get(key) ?? 1;
  }

  restore(key: string): void {
    this.#closed.delete(key);
    this.#restored.add(key);
    this.#sendRestored(key);
  }

  setRates(keys: readonly SharedKey[], sharedRate: readonly RateWindow[]): void {
    const before = this.#layout;
    this.#layout = layoutOf(keys, sharedRate);
    for (const window of this.#own.change(before, this.#layout)) {
      const report = this.#noteRecount(window, nowMs() - window.perMs);
      if (report !== undefined) this.member.send(report);
    }
    // A release of nothing: waiters may have capacity now.
    this.#send('R', '');
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    clearTimeout(this.#reportTimer);
    this.#rejectAll(new GateClosedError(this.#config.name));
    this.#sendReports();
    // The reports travel with the batch of this turn.
    await new Promise(afterThisTurn);
    await this.member.settled();
    await this.member.leave();
  }

  // For the starts.

  /** Whether it begins: its reservation is certain at this moment, from which it counts. */
  begin(start: FleetStart): boolean {
    if (!this.holds(start)) return false;
    start.startedMs = this.member.checkedMs;
    this.#reserved.delete(start.id);
    this.#begun.set(start.id, start);
    this.#own.note(this.#layout, start.key, start.startedMs, start.weight);
    this.#unreported.push(start);
    this.#reportTimer ??= setTimeout(() => this.#sendReports(), this.#layout.reportMs);
    return true;
  }

  cancel(start: FleetStart): void {
    if (this.#reserved.delete(start.id)) this.#send('R', start.id);
  }

  correct(start: FleetStart, more: number): void {
    this.#own.note(this.#layout, start.key, start.startedMs, more, true);
    start.more += more;
    // Until it is confirmed, its report takes the correction along, or finds that one is left.
    if (!this.#begun.has(start.id)) this.#sendCorrection(start);
  }

  /**
   * Downwards only where Redis has said from when the start counts, and only in the same epoch: a correction that outlasts
   * its start, or that the reports after a loss of data contain, would let too much begin.
   */
  #sendCorrection(start: FleetStart): void {
    const { key, startedMs, countedMs, more } = start;
    start.more = 0;
    const epoch = this.#epochs;
    const correction = operation(
      () => {
        const isCounted = countedMs > 0 && start.epoch === epoch && epoch === this.#epochs;
        if (more === 0 || (more < 0 && !isCounted)) return undefined;
        return ['V', key, ageOf(startedMs), isCounted ? String(countedMs) : '0', String(more)];
      },
      () => this.#corrections.delete(correction),
    );
    if (more > 0) this.#corrections.add(correction);
    this.member.send(correction);
  }

  /** Whether a reservation is certain at this moment. */
  holds(start: FleetStart): boolean {
    return this.member.checkLease() && this.#reserved.get(start.id) === start;
  }

  verdict(key: string, letter: 'O' | 'N'): void {
    this.#send(letter, key);
  }

  // For the member.

  get hasWaiters(): boolean {
    return this.#waiting.size > 0;
  }

  /** A reservation that Redis has lost is not claimed: the call asks again. */
  claims(): Iterable<readonly [string, string]> {
    return [];
  }

  waiters(): Operation[] {
    return [...this.#waiting.values()].map(({ ask }) => ask);
  }

  onJoined(isFirst: boolean): void {
    this.#unavailable = undefined;
    for (const correction of this.#corrections) this.member.send(correction);
    // Their reports were executed, although the replies were lost.
    for (const [id, start] of this.#begun) {
      if (this.#lastHeld.has(id)) continue;
      this.#begun.delete(id);
      // Whether with the corrections that were sent along is unknown.
      start.more = Math.max(0, start.more, start.more - start.sentMore);
      this.#sendCorrection(start);
    }
    for (const report of this.#recounts.values()) this.member.send(report);
    for (const [key, { why, untilMs, isConfirmed }] of this.#closed)
      if (!isConfirmed) this.#sendCooldown(key, why, untilMs - nowMs(), 1);
    for (const key of this.#restored) this.#sendRestored(key);
    const { hooks, name, maxConcurrent = Number.POSITIVE_INFINITY } = this.#config;
    if (!isFirst || !hooks.hasListeners('fleet:joined')) return;
    hooks.emit('fleet:joined', { source: name, maxConcurrent, members: this.member.figures.members });
  }

  onGranted(tagged: string): void {
    const [id = '', key = '', trial] = tagged.split('/');
    const waiter = this.#waiting.get(id);
    if (waiter === undefined) return;
    this.#waiting.delete(id);
    const start = new FleetStart(this, id, key, waiter.weight, trial === 't');
    this.#reserved.set(id, start);
    waiter.listener.onGrant(start);
  }

  onHeld(tags: readonly string[]): void {
    const held = new Set<string>();
    for (const tag of tags) {
      const [id = ''] = tag.split('/');
      held.add(id);
      const begun = this.#begun.get(id);
      if (this.#waiting.has(id)) this.onGranted(tag);
      else if (begun !== undefined) this.member.send(begun.report);
      else if (!this.#reserved.has(id)) this.#send('R', id);
    }
    this.#lastHeld = held;
  }

  /** What has begun is still to be reported, unless Redis has counted it meanwhile: the next join decides. */
  onLeaseEnd(): void {
    this.#lost += this.#reserved.size;
    this.#reserved.clear();
    this.#unreported = [];
  }

  onUnavailable(error: LimitsUnavailableError): void {
    this.#unavailable = error;
    const { hooks, name } = this.#config;
    if (hooks.hasListeners('fleet:unavailable'))
      hooks.emit('fleet:unavailable', { source: name, error: summaryOf(error) });
    if (this.#whenUnavailable === 'fail') this.#rejectAll(error);
  }

  onAvailable(outageMs: number): void {
    const { hooks, name } = this.#config;
    if (hooks.hasListeners('fleet:restored')) hooks.emit('fleet:restored', { source: name, outageMs });
  }

  onExtra(extra: unknown, isNewEpoch: boolean): void {
    const [states, missing, waitMs, free] = extra as [unknown[] | null, unknown[], unknown, unknown[] | null];
    if (free !== null)
      for (const [at, [key]] of this.#layout.keys.entries()) this.#free.set(key, Number(free[at]) / 1_000);
    this.#retryAfterMs = Number(waitMs);
    if (states !== null && !isNewEpoch) this.#onStates(states);
    if (!isNewEpoch) return;
    this.#epochs++;
    this.#lost += this.#reserved.size;
    this.#reserved.clear();
    // What is reported again contains their corrections.
    for (const start of this.#begun.values()) start.more = 0;
    this.#begun.clear();
    this.#unreported = [];
    this.#corrections.clear();
    this.#noteRecounts(new Set(missing.map(String)));
    for (const [key, { why, untilMs }] of this.#closed)
      this.#closed.set(key, { why, untilMs, isConfirmed: false });
  }

  /** All keys that are out of use: one that is missing has been restored, by a push that was lost. */
  #onStates(states: readonly unknown[]): void {
    const closed = new Set<string>();
    for (let i = 0; i < states.length; i += 3) {
      closed.add(String(states[i]));
      this.#onClosed(String(states[i]), states[i + 1] as CooldownReason, Number(states[i + 2]));
    }
    for (const [key, { untilMs, isConfirmed }] of this.#closed) {
      if (closed.has(key) || !isConfirmed) continue;
      this.#closed.delete(key);
      if (untilMs > nowMs() + LATE_MS) this.#config.onKey(key, 'ready', 0);
    }
  }

  onBroadcast([kind, key = '', why, ms]: readonly string[]): void {
    if (kind !== 'K') return;
    if (why === 'ready') {
      this.#closed.delete(key);
      this.#config.onKey(key, 'ready', 0);
    } else this.#onClosed(key, why as CooldownReason, Number(ms));
  }

  #onAnswer(waiter: StartWaiter, result: unknown): void {
    const answer = String(result);
    const isGranted = answer.startsWith('0');
    if (this.#waiting.get(waiter.id) !== waiter) {
      if (!isGranted) waiter.number = answer;
      return;
    }
    if (isGranted) {
      this.onGranted(waiter.id + answer.slice(1));
      return;
    }
    const isNew = waiter.number === '';
    waiter.number = answer;
    if (isNew) waiter.listener.onWait(Math.max(0, this.#retryAfterMs));
  }

  #onClosed(key: string, why: CooldownReason, ms: number): void {
    const lastsMs = ms < 0 ? Number.POSITIVE_INFINITY : ms;
    this.#closed.set(key, { why, untilMs: nowMs() + lastsMs, isConfirmed: true });
    this.#config.onKey(key, why, lastsMs);
  }

  #sendCooldown(key: string, why: CooldownReason, ms: number, inFlight: number): void {
    if (ms > 0)
      this.#send('C', key, why, Number.isFinite(ms) ? String(Math.ceil(ms)) : '-1', String(inFlight));
  }

  #sendRestored(key: string): void {
    this.member.send(
      operation(
        () => ['U', key],
        () => this.#restored.delete(key),
      ),
    );
  }

  #send(...words: string[]): void {
    this.member.send(operation(() => words));
  }

  #sendReports(): void {
    clearTimeout(this.#reportTimer);
    this.#reportTimer = undefined;
    const starts = this.#unreported;
    this.#unreported = [];
    for (const start of starts) this.member.send(start.report);
  }

  /** Confirmed: the entry in the windows is made, or (`countedMs` is 0) the start was counted when it was reaped. */
  reported(start: FleetStart, countedMs: number): void {
    this.#begun.delete(start.id);
    start.countedMs = countedMs;
    start.epoch = this.#epochs;
    if (countedMs > 0) start.more -= start.sentMore;
    this.#sendCorrection(start);
  }

  /** Notes what to report again: all starts in windows that are lost, the latest in those that were kept. */
  #noteRecounts(missing: ReadonlySet<string>): void {
    this.#recounts.clear();
    const now = nowMs();
    for (const window of this.#layout.windows) {
      const { id, perMs } = window;
      this.#noteRecount(window, now - (missing.has(id) ? perMs : Math.min(perMs, MAX_LAG_MS)));
    }
  }

  #noteRecount(window: FleetWindow, sinceMs: number): Operation | undefined {
    const { id } = window;
    const starts = this.#own.since(window, sinceMs);
    if (starts.length === 0) return undefined;
    const number = String(++this.#recounted);
    const report = operation(
      () => [
        'M',
        id,
        number,
        String(starts.length),
        ...starts.flatMap(([startedMs, amount]) => [ageOf(startedMs), String(amount)]),
      ],
      () => {
        if (this.#recounts.get(id) === report) this.#recounts.delete(id);
      },
    );
    this.#recounts.set(id, report);
    return report;
  }

  #rejectAll(error: unknown): void {
    const waiters = [...this.#waiting.values()];
    for (const waiter of waiters) {
      this.#waiting.delete(waiter.id);
      this.member.send(waiter.cancel);
      waiter.listener.onReject(error);
    }
  }
}

/** Whole milliseconds, never too many: a start must not count from earlier than it was. */
const ageOf = (startedMs: number): string => String(Math.max(0, Math.floor(nowMs() - startedMs)));

/** A request for a start. */
class StartWaiter {
  readonly id: string;
  readonly weight: number;
  readonly listener: SharedStartListener;
  /** Its number in the queue, once it has one. */
  number = '';
  #isSent = false;
  readonly ask: Operation;
  readonly cancel: Operation;

  constructor(
    id: string,
    weight: number,
    priority: number,
    listener: SharedStartListener,
    isWaiting: () => boolean,
    onAnswer: (result: unknown) => void,
  ) {
    this.id = id;
    this.weight = weight;
    this.listener = listener;
    const score = priority === 0 ? '0' : String(-priority);
    this.ask = operation(() => {
      if (!isWaiting()) return undefined;
      this.#isSent = true;
      return ['A', id, score, String(weight), this.number];
    }, onAnswer);
    this.cancel = operation(() => {
      if (!this.#isSent) return undefined;
      return this.number === '' ? ['R', id] : ['X', id, score, String(weight), this.number];
    });
  }
}

class FleetStart implements SharedStart {
  readonly id: string;
  readonly key: string;
  readonly weight: number;
  readonly isOnTrial: boolean;
  startedMs = 0;
  /** What it weighs beyond its estimate, as far as Redis does not know, and what its last report said of that. */
  more = 0;
  sentMore = 0;
  /** From when it counts, in the time of Redis and in this epoch; 0 if that is unknown. */
  countedMs = 0;
  epoch = 0;
  readonly report: Operation;
  readonly #starts: FleetStarts;
  #state: 'reserved' | 'begun' | 'over' = 'reserved';
  #isJudged = false;

  constructor(starts: FleetStarts, id: string, key: string, weight: number, isOnTrial: boolean) {
    this.#starts = starts;
    this.id = id;
    this.key = key;
    this.weight = weight;
    this.isOnTrial = isOnTrial;
    this.report = operation(
      () => {
        this.sentMore = this.more;
        return ['S', id, ageOf(this.startedMs), String(this.more)];
      },
      (countedMs) => starts.reported(this, Number(countedMs)),
    );
  }

  isCertain(): boolean {
    return this.#starts.holds(this);
  }

  begin(): boolean {
    if (!this.#starts.begin(this)) return false;
    this.#state = 'begun';
    return true;
  }

  cancel(): void {
    if (this.#state !== 'reserved') return;
    this.#state = 'over';
    this.#starts.cancel(this);
  }

  correct(more: number): void {
    if (this.#state === 'begun' && more !== 0) this.#starts.correct(this, more);
  }

  succeeded(): void {
    this.#judge('O');
  }

  end(): void {
    this.#judge('N');
  }

  #judge(letter: 'O' | 'N'): void {
    if (!this.isOnTrial || this.#isJudged || this.#state !== 'begun') return;
    this.#isJudged = true;
    this.#starts.verdict(this.key, letter);
  }
}
