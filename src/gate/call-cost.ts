import { BudgetExceededError } from '../errors.js';
import { ignoreRejection } from '../internal/abort.js';
import { synchronous } from '../internal/validate.js';
import {
  type Amounts,
  amountsOf,
  type Budget,
  type Claim,
  countedAmounts,
  isCost,
  unitsOf,
} from '../request/budget.js';
import type { CallEventEmitter } from './events.js';
import type { GateState } from './gate-state.js';
import type { GateCallOptions } from './options.js';

/** Counted for each attempt, whether the gate has a `cost` or not. */
const CALLS = 'calls';
const ONE_CALL = /* @__PURE__ */ unitsOf(1);

/**
 * What one call spends from a budget, one attempt after another.
 *
 * Invariants:
 * - An attempt that starts has reserved its estimate, and one that has ended has no reservation.
 * - An unknown cost counts as estimated.
 */
export class CallCost {
  readonly #gate: GateState;
  readonly #events: CallEventEmitter;
  readonly #budget: Budget;
  /** The meters of the estimate, and behind them those that only an actual cost has named. */
  readonly #meters: string[];
  readonly #estimate: readonly number[];
  /** The meters of the budgets; looked up again where an actual cost names one more. */
  #found: Claim['found'];
  /** What the attempt has said that it cost, by the place of the meter; `undefined` where it has not. */
  #actual: (number | undefined)[] | undefined;
  #isComplete = false;
  /** What the attempts before have spent. */
  readonly #spent: number[] = [];

  /** @throws what `cost.estimate` throws, or a TypeError or RangeError for what it returns */
  constructor(
    gate: GateState,
    events: CallEventEmitter,
    budget: Budget,
    { weight = gate.estimateUsage(), tenant, taskId, cacheKey }: GateCallOptions,
  ) {
    const { cost, name } = gate.settings;
    this.#gate = gate;
    this.#events = events;
    this.#budget = budget;
    const given = cost === undefined ? {} : cost.estimate({ weight, tenant, taskId, cacheKey });
    const { meters, amounts } = countedAmounts(
      `cost.estimate of ${name}`,
      synchronous('cost.estimate', given),
    );
    if (!meters.includes(CALLS)) {
      meters.push(CALLS);
      amounts.push(ONE_CALL);
    }
    this.#meters = meters;
    this.#estimate = amounts;
    this.#found = budget.find(meters);
    if (!gate.emittedUnmetered && gate.settings.hooks.hasListeners('budget:unmetered')) this.#emitUnmetered();
  }

  /** What the attempts have spent. */
  get spent(): Amounts {
    return this.#spent.length === 0 ? {} : amountsOf(this.#meters, this.#spent);
  }

  /**
   * Before the call waits for anything: whether it would fit if nothing else were in flight.
   *
   * @throws {BudgetExceededError} if it cannot fit any more
   */
  check(): void {
    try {
      this.#budget.check(this.#gate.settings.name, this.#claim, false);
    } catch (error) {
      throw this.#emitted(error);
    }
  }

  /**
   * Reserves what an attempt may cost.
   *
   * @param lastError of the attempt before it
   * @throws {BudgetExceededError} if it does not fit
   */
  reserve(lastError: unknown): void {
    try {
      this.#budget.reserve(this.#gate.settings.name, this.#claim, lastError);
    } catch (error) {
      throw this.#emitted(error);
    }
    this.#actual = undefined;
    this.#isComplete = false;
  }

  /** Whether the gate can tell an actual cost from a result. */
  get readsActual(): boolean {
    return this.#gate.settings.cost?.actual !== undefined;
  }

  /** Reads a result, the JSON body of a `Response`, or an item of a stream. Never throws. */
  read(value: unknown, weight: number | undefined): void {
    const { cost } = this.#gate.settings;
    if (cost?.actual === undefined) return;
    try {
      const actual: Readonly<Record<string, unknown>> | undefined = cost.actual(value, weight);
      if (typeof actual !== 'object' || actual === null) return;
      ignoreRejection(actual);
      for (const meter of Object.keys(actual)) {
        const amount = actual[meter];
        if (!isCost(amount)) continue;
        let place = this.#meters.indexOf(meter);
        if (place < 0) {
          place = this.#meters.push(meter) - 1;
          this.#found = this.#budget.find(this.#meters);
        }
        this.#actual ??= [];
        this.#actual[place] = unitsOf(amount);
      }
    } catch {
      // A result that cannot be read leaves the estimate as it is.
    }
  }

  /** The attempt has come to its end: what it has said is all that it cost. */
  complete(): void {
    this.#isComplete = true;
  }

  /** Counts what the attempt cost; nothing if it never started. Call it once for each `reserve`. */
  settle(hasStarted: boolean): void {
    const estimate = this.#estimate;
    const cost = this.#meters.map((_, i) => (hasStarted ? this.#costAt(i, estimate[i] ?? 0) : 0));
    this.#budget.settle(this.#gate.settings.name, this.#claim, cost);
    if (hasStarted)
      for (let i = 0; i < cost.length; i++) this.#spent[i] = (this.#spent[i] ?? 0) + (cost[i] as number);
  }

  /** A stream that was left or that failed may have cost more than its items have said. */
  #costAt(place: number, estimate: number): number {
    const actual = this.#actual?.[place];
    if (actual === undefined) return estimate;
    return this.#isComplete ? actual : Math.max(actual, estimate);
  }

  get #claim(): Claim {
    return { names: this.#meters, found: this.#found, amounts: this.#estimate };
  }

  #emitted(error: unknown): unknown {
    if (error instanceof BudgetExceededError) this.#events.budgetExceeded(error);
    return error;
  }

  /** Once per gate: a budget that caps money does not notice a gate that names none. */
  #emitUnmetered(): void {
    const meters = [...this.#budget.meters].filter((meter) => !this.#meters.includes(meter));
    if (meters.length === 0) return;
    this.#gate.emittedUnmetered = true;
    this.#events.unmetered(meters);
  }
}
