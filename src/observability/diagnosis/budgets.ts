import type { BudgetFigures, LifecycleEvents } from '../../hooks/events.js';
import type { RequestInfo } from '../../manager/request.js';

/** The meter of a budget that has the smallest part left. */
export interface BudgetState {
  readonly meter: string;
  readonly limit: number;
  /** Spent, and reserved by calls in flight. */
  readonly spent: number;
}

export interface BudgetReport {
  /** Requests with budgets that ended in the window or run now, and those of them that have used nearly all. */
  readonly requests: number;
  readonly nearlySpent: number;
  /** Of the last one of those. */
  readonly last: BudgetState | undefined;
  /** The last rejection of each gate. */
  readonly exceeded: ReadonlyMap<string, LifecycleEvents['budget:exceeded']>;
  /** By gate, the meters that it spends nothing from. */
  readonly unmetered: ReadonlyMap<string, readonly string[]>;
}

/** Beyond this part of a cap a budget is nearly spent. */
const NEARLY = 0.9;

/** Follows the budgets of a manager's requests for its diagnosis. */
export class BudgetRecorder {
  readonly #gates: ReadonlySet<string>;
  readonly #exceeded = new Map<string, LifecycleEvents['budget:exceeded']>();
  /** The event comes once for each gate, so it counts as long as the recording lasts. */
  readonly #unmetered = new Map<string, readonly string[]>();
  #last: BudgetState | undefined;

  constructor(gates: readonly string[]) {
    this.#gates = new Set(gates);
  }

  noteExceeded(payload: LifecycleEvents['budget:exceeded']): void {
    if (this.#gates.has(payload.source)) this.#exceeded.set(payload.source, payload);
  }

  noteUnmetered({ source, meters }: LifecycleEvents['budget:unmetered']): void {
    if (this.#gates.has(source)) this.#unmetered.set(source, meters);
  }

  /** Keeps the state of a budget that is nearly spent. Returns whether it is. */
  noteIfNearlySpent(budget: BudgetFigures): boolean {
    const state = tightest(budget);
    if (state === undefined || state.spent < NEARLY * state.limit) return false;
    this.#last = state;
    return true;
  }

  report(
    count: (name: 'budgets' | 'nearly-spent') => number,
    current: readonly RequestInfo[] = [],
  ): BudgetReport {
    const running = current.flatMap(({ budget }) => budget ?? []);
    const nearly = running.filter((budget) => this.noteIfNearlySpent(budget)).length;
    return {
      requests: count('budgets') + running.length,
      nearlySpent: count('nearly-spent') + nearly,
      last: this.#last,
      exceeded: this.#exceeded,
      unmetered: this.#unmetered,
    };
  }
}

/** Of the meters with a cap; `undefined` if there is none. */
function tightest({ limits, spent, reserved }: BudgetFigures): BudgetState | undefined {
  let tightest: BudgetState | undefined;
  for (const [meter, limit] of Object.entries(limits)) {
    const used = (spent[meter] ?? 0) + (reserved[meter] ?? 0);
    if (!(limit > 0 && limit < Number.POSITIVE_INFINITY)) continue;
    if (tightest === undefined || used / limit > tightest.spent / tightest.limit)
      tightest = { meter, limit, spent: used };
  }
  return tightest;
}
