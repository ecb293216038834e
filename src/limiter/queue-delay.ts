/** What a window of calls shows. */
export interface Verdict {
  /** `over`: calls queue inside the service. `calm`: they do not. */
  readonly is: 'over' | 'between' | 'calm';
  /** The share of the calls in flight that only wait, from 0 to 1. */
  readonly waiting: number;
}

/** A call in flight, as `QueueDelay` keeps it. */
export interface TimedCall {
  readonly startedMs: number;
  /** Whether a first item comes before its end. */
  isStreamed: boolean;
  /** Milliseconds to its first item. */
  firstMs: number | undefined;
}

/** A window of first items is complete with so many calls, a quarter of the limit, within these bounds. */
const FIRST_SHARE = 0.25;
const FEWEST_FIRST = 8;
const MOST_FIRST = 25;
/** A window of whole calls, for a regression. */
const PLAIN_SHARE = 0.35;
const FEWEST_PLAIN = 16;
const MOST_PLAIN = 36;
/** Streams are judged if they are at least this share of the calls. */
const ENOUGH_STREAMS = 0.04;
/** A delay of this share of a call's duration is a queue; the intercept of a regression needs more. */
const TOLERATED = 0.03;
const TOLERATED_INTERCEPT = 0.09;
/** So is one of this multiple of the time to the first item without a queue. */
const TOLERATED_FIRST = 1.5;
/** Beyond what is tolerated, so many standard errors are chance. */
const ERRORS = 2;
/** Milliseconds, and durations of a call, over which the time without a queue is the minimum. */
const BASELINE_MS = 5_000;
const BASELINE_CALLS = 8;
/** Items that take this many times their best mean show a service that only becomes slower. */
const TOO_SLOW = 6;
const SLOW_WEIGHT = 1 / 20;
/** The weight of one call in a moving mean: this over the limit. */
const MOVING_WEIGHT = 1.5;
/** Means move no faster than over so many calls. */
const FEWEST_MOVING = 20;

/** Sums of one window: of times to the first item, or of durations by usage. */
class Window {
  count = 0;
  sumY = 0;
  sumYY = 0;
  sumX = 0;
  sumXX = 0;
  sumXY = 0;

  add(y: number, x = 0): void {
    this.count++;
    this.sumY += y;
    this.sumYY += y * y;
    this.sumX += x;
    this.sumXX += x * x;
    this.sumXY += x * y;
  }

  get mean(): number {
    return this.sumY / this.count;
  }

  /** The standard error of the mean. */
  get error(): number {
    const { count, mean } = this;
    return Math.sqrt(Math.max(0, this.sumYY / count - mean * mean) / Math.max(1, count - 1));
  }

  /** Least squares: what a call takes that uses nothing, with its standard error. */
  intercept(): { mean: number; error: number } {
    const { count, sumX, sumY } = this;
    const spread = this.sumXX - (sumX * sumX) / count;
    if (spread <= 0) return { mean: 0, error: Number.POSITIVE_INFINITY };
    const slope = Math.max(0, (this.sumXY - (sumX * sumY) / count) / spread);
    const mean = (sumY - slope * sumX) / count;
    const rest = this.sumYY - (sumY * sumY) / count - slope * slope * spread;
    const variance = Math.max(0, rest) / Math.max(1, count - 2);
    return { mean, error: Math.sqrt(variance * (1 / count + (sumX / count) ** 2 / spread)) };
  }
}

/** The least value of this period and of the one before. */
class Minimum {
  #sinceMs = Number.NEGATIVE_INFINITY;
  #present = Number.POSITIVE_INFINITY;
  #before = Number.POSITIVE_INFINITY;

  note(value: number, nowMs: number, periodMs: number): number {
    if (nowMs - this.#sinceMs >= periodMs) {
      this.#before = this.#present;
      this.#present = Number.POSITIVE_INFINITY;
      this.#sinceMs = nowMs;
    }
    this.#present = Math.min(this.#present, value);
    return Math.min(this.#present, this.#before);
  }
}

/**
 * Finds from times alone whether calls queue inside a service. By Little's law, if the first item comes later than
 * without a queue by a share of the whole call, then that share of the calls in flight only waits.
 *
 * Without streams, the time of a call that uses no tokens stands for the time to the first item: the intercept of a
 * regression of durations on usage.
 */
export class QueueDelay {
  /** Streams that wait for their first item, the oldest first. */
  readonly #pending = new Set<TimedCall>();
  readonly #firstBaseline = new Minimum();
  readonly #plainBaseline = new Minimum();
  #first = new Window();
  #plain = new Window();
  /** Only calls that began later are judged. */
  #fromMs = Number.NEGATIVE_INFINITY;
  /** The moving mean of the time from the first item of a stream to its end. */
  #restMs: number | undefined;
  #streamedShare: number | undefined;
  #perItemMs: number | undefined;
  #perItemCount = 0;
  #bestPerItemMs = Number.POSITIVE_INFINITY;

  /** Whether items take several times as long as they did at best. */
  get isSlow(): boolean {
    return this.#perItemMs !== undefined && this.#perItemMs > TOO_SLOW * this.#bestPerItemMs;
  }

  /** Judges only calls that begin from now on. */
  restart(nowMs: number): void {
    this.#fromMs = nowMs;
    this.#first = new Window();
    this.#plain = new Window();
  }

  begin(call: TimedCall): void {
    if (call.isStreamed) this.#pending.add(call);
  }

  firstItem(call: TimedCall, limit: number, nowMs: number): Verdict | undefined {
    this.#pending.delete(call);
    call.firstMs = nowMs - call.startedMs;
    if (call.startedMs < this.#fromMs) return undefined;
    this.#first.add(call.firstMs);
    return this.#judgeFirst(limit, nowMs);
  }

  /** A call is complete. */
  end(call: TimedCall, usage: number | undefined, limit: number, nowMs: number): Verdict | undefined {
    const durationMs = nowMs - call.startedMs;
    const weight = MOVING_WEIGHT / Math.max(FEWEST_MOVING, limit);
    if (call.firstMs !== undefined) this.#restMs = moved(this.#restMs, durationMs - call.firstMs, weight);
    this.#streamedShare = moved(this.#streamedShare, call.isStreamed ? 1 : 0, weight);
    if (usage !== undefined && usage > 0) this.#noteItems((durationMs - (call.firstMs ?? 0)) / usage);
    if (call.isStreamed || usage === undefined || call.startedMs < this.#fromMs) return undefined;
    this.#plain.add(durationMs, usage);
    return this.#streamedShare < ENOUGH_STREAMS ? this.#judgePlain(limit, nowMs) : undefined;
  }

  /** A call ended without a result. */
  drop(call: TimedCall): void {
    this.#pending.delete(call);
  }

  #noteItems(ms: number): void {
    this.#perItemMs = moved(this.#perItemMs, ms, SLOW_WEIGHT);
    if (++this.#perItemCount >= 1 / SLOW_WEIGHT)
      this.#bestPerItemMs = Math.min(this.#bestPerItemMs, this.#perItemMs);
  }

  #judgeFirst(limit: number, nowMs: number): Verdict | undefined {
    const needed = within(FEWEST_FIRST, FIRST_SHARE * limit * (this.#streamedShare ?? 1), MOST_FIRST);
    const window = this.#first;
    if (window.count + this.#pending.size < needed || window.count < 3) return undefined;
    // One that waits for longer than the mean counts with its age: in a service that stalls, first items do not come.
    const { mean } = window;
    const late: number[] = [];
    for (const { startedMs } of this.#pending) {
      if (nowMs - startedMs <= mean) break;
      if (startedMs >= this.#fromMs) late.push(nowMs - startedMs);
    }
    if (window.count + late.length < needed) return undefined;
    for (const ageMs of late) window.add(ageMs);
    this.#first = new Window();
    const durationMs = window.mean + (this.#restMs ?? 0);
    return this.#judge(this.#firstBaseline, window.mean, window.error, TOLERATED, nowMs, durationMs);
  }

  #judgePlain(limit: number, nowMs: number): Verdict | undefined {
    const window = this.#plain;
    if (window.count < within(FEWEST_PLAIN, PLAIN_SHARE * limit, MOST_PLAIN)) return undefined;
    this.#plain = new Window();
    const { mean, error } = window.intercept();
    if (error === Number.POSITIVE_INFINITY) return undefined;
    return this.#judge(this.#plainBaseline, mean, error, TOLERATED_INTERCEPT, nowMs, window.mean);
  }

  #judge(
    baseline: Minimum,
    mean: number,
    error: number,
    tolerated: number,
    nowMs: number,
    durationMs: number,
  ): Verdict {
    const baseMs = Math.max(
      0,
      baseline.note(mean + error, nowMs, Math.max(BASELINE_MS, BASELINE_CALLS * durationMs)),
    );
    const delayMs = mean - baseMs;
    const firstMs = tolerated === TOLERATED ? TOLERATED_FIRST * baseMs : 0;
    const limitMs = Math.max(tolerated * durationMs, firstMs) + ERRORS * error;
    const waiting = Math.min(1, Math.max(0, delayMs / Math.max(durationMs, mean, 1)));
    return { is: delayMs > limitMs ? 'over' : delayMs < limitMs / 2 ? 'calm' : 'between', waiting };
  }
}

const within = (low: number, value: number, high: number): number => Math.min(high, Math.max(low, value));

const moved = (mean: number | undefined, value: number, weight: number): number =>
  mean === undefined ? value : mean + (value - mean) * weight;
