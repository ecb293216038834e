import type { BudgetFigures, LifecycleEvents } from '../../hooks/events.js';
import type { RequestInfo } from '../../manager/request.js';

/** The meter of a budget that has the smallest part left. */
export interface BudgetState {
  readonly meter: string;
  readonly limit: number;
  /** Spent, and reserved by calls in flight. */
  readonly spent: number;
}

export interface BudgetReport extends Readonly<Pick<BudgetRecorder, 'last' | 'exceeded' | 'unmetered'>> {
  /** Requests with budgets that ended in the window or run now, and those of them that have used nearly all. */
  readonly requests: number;
  readonly nearlySpent: number;
}

/** Beyond this part of a cap a budget is nearly spent. */
const NEARLY = 0.9;

/** Follows the budgets of a manager's requests for its diagnosis. */
export class BudgetRecorder {
  /** The last rejection of each gate. */
  readonly exceeded: Map<string, LifecycleEvents['budget:exceeded']> = new Map();
  /** By gate, the meters that it spends nothing from. The event comes once, so it counts as long as the recording lasts. */
  readonly unmetered = new Map<string, readonly string[]>();
  /** The last budget that was nearly spent. */
  last: BudgetState | undefined;

  /** Keeps the state of a budget that is nearly spent. Returns whether it is. */
  noteIfNearlySpent(budget: BudgetFigures): boolean {
    const state = tightest(budget);
    if (state === undefined || state.spent < NEARLY * state.limit) return false;
    this.last = state;
    return true;
  }

  report(
    count: (name: 'budgets' | 'nearly-spent') => number,
    current: readonly RequestInfo[] = [],
  ): BudgetReport {
    const running = current.flatMap(({ budget }) => budget ?? []);
    const nearly = running.filter((budget) => this.noteIfNearlySpent(budget)).length;
    const { last, exceeded, unmetered } = this;
    return {
      requests: count('budgets') + running.length,
      nearlySpent: count('nearly-spent') + nearly,
      last,
      exceeded,
      unmetered,
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
