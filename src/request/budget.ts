import { BudgetExceededError } from '../errors.js';
import type { BudgetFigures } from '../hooks/events.js';
import { LazySignal } from '../internal/abort.js';
import { refusal } from '../internal/validate.js';

/**
 * What a task may spend: in calls, in tokens, in money, or in whatever else the host counts.
 *
 * A gate reserves what an attempt may cost before it starts, and replaces the reservation by the actual cost when it ends.
 * So attempts in flight count, and many at once cannot exceed a cap together.
 */

/** Amounts by meter. The names of the meters are the host's own. */
export type Amounts<M extends string = string> = Readonly<Record<M, number>>;

/**
 * Amounts are counted in whole billionths: 0.1 three times is exactly 0.3, and what is reserved and released leaves
 * nothing behind. Sums are exact up to 9 million with all nine decimals, and up to 4.6 billion without any.
 */
const UNITS = 1e9;

/** An amount in billionths. The smallest counts as one, never as nothing. */
export const unitsOf = (amount: number): number => Math.round(amount * UNITS) || (amount > 0 ? 1 : 0);

/** What a budget allows of one meter, and what of it is gone. In billionths. */
export interface Meter {
  readonly limit: number;
  spent: number;
  reserved: number;
}

/** What one budget counts. */
interface Account {
  readonly meters: ReadonlyMap<string, Meter>;
  /** Aborts when a call is rejected, or has cost more than is left. */
  readonly exceeded: LazySignal;
}

/**
 * Caps on what a task and everything under it may spend.
 *
 * Pass one to `manager.run` or `manager.stream`, or to a call of a gate: every attempt in a gate then spends from it. A
 * call that does not fit is rejected with `BudgetExceededError` before anything is sent.
 *
 * Invariants:
 * - Where estimates are upper bounds, what is spent and reserved never exceeds a cap.
 * - An attempt reserves from a budget and all those above it, or from none.
 * - An attempt that has ended has no reservation left. One that never started has spent nothing.
 *
 * @throws {TypeError | RangeError} from the constructor, for a cap that is not a number from 0. `Infinity` counts without a cap
 *
 * @example
 * const budget = new Budget({ calls: 100, tokens: 200_000, usd: 0.5 });
 * await manager.run(taskId, ({ pipeline }) => pipeline.research(question), { budget });
 * console.log(budget.spent.usd, budget.left('usd'));
 */
export class Budget<M extends string = string> {
  /** @internal Its own account, then those of the budgets above it: what is spent is spent from each of them. */
  accounts: readonly [Account, ...Account[]];
  #signal: AbortSignal | undefined;

  constructor(caps: Amounts<M>) {
    const { meters, amounts } = countedAmounts('budget', caps, Number.POSITIVE_INFINITY);
    const own = new Map(
      meters.map((name, i) => [name, { limit: amounts[i] as number, spent: 0, reserved: 0 }]),
    );
    this.accounts = [{ meters: own, exceeded: new LazySignal() }];
  }

  /** Its caps; `Infinity` for none. Those of a budget above it apply as well. */
  get limits(): Amounts<M> {
    return this.#figures('limit');
  }

  /** What has been spent: actual costs, and estimates where those are not known. */
  get spent(): Amounts<M> {
    return this.#figures('spent');
  }

  /** What attempts in flight may cost. */
  get reserved(): Amounts<M> {
    return this.#figures('reserved');
  }

  /**
   * What a call may still cost on this meter, by this budget and those above it: 0 if nothing is left.
   *
   * @throws {RangeError} if it has no such meter
   */
  left(meter: M): number {
    const names = [...this.meters];
    if (!names.includes(meter)) throw new RangeError(refusal('meter', `one of ${names.join(', ')}`, meter));
    let left = Number.POSITIVE_INFINITY;
    for (const found of this.find([meter]))
      if (found !== undefined) left = Math.min(left, found.limit - found.spent - found.reserved);
    return Math.max(0, left) / UNITS;
  }

  /**
   * A part of this budget, for a sub-agent: what it spends is spent from both, within the caps of both. It counts on all
   * meters of this budget. Nothing is set aside for it.
   *
   * @throws {TypeError | RangeError} for a cap that is not a number from 0
   *
   * @example
   * const ofSearch = budget.child({ usd: 0.1 });
   * await withBudget(ofSearch, () => searchAgent.run(question));
   */
  child(caps: Readonly<Partial<Record<M, number>>>): Budget<M> {
    const uncapped = Object.fromEntries([...this.meters].map((name) => [name, Number.POSITIVE_INFINITY]));
    return new Budget<M>({ ...(uncapped as Amounts<M>), ...caps }).#under(this.accounts);
  }

  /** @internal This budget where `outer` applies as well: what is spent is spent from both, and once from what they share. */
  within(outer: Budget | undefined): Budget<M> {
    const { accounts } = this;
    const further = outer?.accounts.filter((account) => !accounts.includes(account)) ?? [];
    if (further.length === 0) return this;
    const joined = new Budget<M>({} as Amounts<M>);
    joined.accounts = accounts;
    return joined.#under(further);
  }

  #under(further: readonly Account[]): this {
    this.accounts = [...this.accounts, ...further];
    return this;
  }

  /**
   * Aborts with the `BudgetExceededError` when a call that spends from this budget is rejected, and when actual costs
   * exceed one of its caps. Also aborts with the signal of the budget above it.
   */
  get signal(): AbortSignal {
    const [own, ...above] = this.accounts.map(({ exceeded }) => exceeded.signal) as [AbortSignal];
    this.#signal ??= above.length === 0 ? own : AbortSignal.any([own, ...above]);
    return this.#signal;
  }

  /** @internal */
  figures(): BudgetFigures {
    const { limits, spent, reserved } = this;
    return { limits, spent, reserved };
  }

  /** @internal */
  get meters(): IterableIterator<string> {
    return this.accounts[0].meters.keys();
  }

  /** @internal The meters with these names, in that order, account by account: a call looks them up once. */
  find(names: readonly string[]): readonly (Meter | undefined)[] {
    const found: (Meter | undefined)[] = [];
    for (const { meters } of this.accounts) for (const name of names) found.push(meters.get(name));
    return found;
  }

  /**
   * @internal Whether an attempt fits: beside those in flight, or, without `withReserved`, if all of them cost nothing.
   * @throws {BudgetExceededError} if it does not fit
   */
  check(source: string, { names, found, amounts }: Claim, withReserved: boolean, cause?: unknown): void {
    for (let i = 0; i < found.length; i++) {
      const meter = found[i];
      const place = i % names.length;
      const amount = amounts[place] ?? 0;
      if (meter === undefined || amount === 0) continue;
      if (amount <= meter.limit - meter.spent - (withReserved ? meter.reserved : 0)) continue;
      const error = exceededError(source, names[place] as string, meter, amount, cause);
      this.accounts[0].exceeded.fire(error);
      throw error;
    }
  }

  /**
   * @internal Reserves what an attempt may cost.
   * @throws {BudgetExceededError} if it does not fit
   */
  reserve(source: string, claim: Claim, cause?: unknown): void {
    this.check(source, claim, true, cause);
    const { names, found, amounts } = claim;
    for (let i = 0; i < found.length; i++) {
      const meter = found[i];
      if (meter !== undefined) meter.reserved += amounts[i % names.length] ?? 0;
    }
  }

  /** @internal Replaces the reservation of an attempt that has ended by its cost. */
  settle(source: string, { names, found, amounts }: Claim, cost: readonly number[]): void {
    for (let i = 0; i < found.length; i++) {
      const meter = found[i];
      if (meter === undefined) continue;
      const place = i % names.length;
      meter.reserved -= amounts[place] ?? 0;
      meter.spent += cost[place] as number;
      const { exceeded } = this.accounts[Math.floor(i / names.length)] as Account;
      if (meter.spent > meter.limit && !exceeded.aborted)
        exceeded.fire(exceededError(source, names[place] as string, meter, 0));
    }
  }

  #figures(figure: keyof Meter): Amounts<M> {
    return Object.freeze(
      Object.fromEntries([...this.accounts[0].meters].map(([name, meter]) => [name, meter[figure] / UNITS])),
    ) as Amounts<M>;
  }
}

/** What the attempts of a call reserve, in billionths. Arrays cost less than a Map here. */
export interface Claim {
  readonly names: readonly string[];
  /** The meters of all budgets that it spends from: see `find`. */
  readonly found: readonly (Meter | undefined)[];
  /** By the place of the name. What only an actual cost has named has none. */
  readonly amounts: readonly number[];
}

function exceededError(
  source: string,
  meter: string,
  { limit, spent, reserved }: Meter,
  amount: number,
  cause?: unknown,
): BudgetExceededError {
  const figures = { limit: limit / UNITS, spent: spent / UNITS, reserved: reserved / UNITS };
  return new BudgetExceededError(source, { meter, ...figures, wanted: amount / UNITS }, cause);
}

/** What a host set for a request: a budget, or the caps of one. */
export type BudgetOption = Budget | Amounts;

/** A budget, also one of another copy of this package. */
export const isBudget = (value: BudgetOption): value is Budget =>
  typeof value === 'object' && value !== null && typeof (value as Budget).reserve === 'function';

/** The largest cost of an attempt. An infinite one would leave a meter without a number as soon as it is released: `Number.MAX_SAFE_INTEGER`. */
const MAX_COST = 9_007_199_254_740_991;

/** Whether an attempt can cost this. */
export const isCost = (amount: unknown): amount is number =>
  typeof amount === 'number' && amount >= 0 && amount <= MAX_COST;

/**
 * Amounts as they are counted.
 *
 * @param most the largest one; `Infinity` for a cap
 * @throws {TypeError | RangeError} naming the amount that is not a number from 0
 */
export function countedAmounts(
  where: string,
  given: Amounts,
  most: number = MAX_COST,
): { meters: string[]; amounts: number[] } {
  if (typeof given !== 'object' || given === null || Array.isArray(given))
    throw new TypeError(refusal(where, 'an object of amounts by meter', given));
  const meters = Object.keys(given);
  const amounts: number[] = [];
  for (const meter of meters) {
    const amount: unknown = given[meter];
    if (typeof amount !== 'number')
      throw new TypeError(refusal(`${where}.${meter}`, 'a number from 0', amount));
    if (!(amount >= 0 && amount <= most)) {
      const range = most === MAX_COST ? `a number from 0 to ${MAX_COST}` : 'a number from 0';
      throw new RangeError(refusal(`${where}.${meter}`, range, amount));
    }
    amounts.push(unitsOf(amount));
  }
  return { meters, amounts };
}

/** Counted amounts in the host's units. */
export const amountsOf = (meters: readonly string[], amounts: readonly number[]): Amounts =>
  Object.fromEntries(meters.map((meter, i) => [meter, (amounts[i] ?? 0) / UNITS]));
