import type { BudgetFigures } from '../hooks/events.js';

/** What a meter of budgets allows: the parts of its caps. */
export interface MeterFigures {
  limit: number;
  spent: number;
  /** What attempts in flight may cost. */
  reserved: number;
  left: number;
}

/**
 * The budgets of these requests together, by meter. Meters without a cap are left out: nothing of them can run out.
 *
 * @param nameOf what a meter is shown as; those of one name are added up
 */
export function budgetUse(
  requests: Iterable<{ readonly budget?: BudgetFigures | undefined }>,
  nameOf: (meter: string) => string,
): Map<string, MeterFigures> {
  const all = new Map<string, MeterFigures>();
  for (const { budget } of requests) {
    for (const [meter, limit] of Object.entries(budget?.limits ?? {})) {
      if (limit === Number.POSITIVE_INFINITY) continue;
      const name = nameOf(meter);
      const figures = all.get(name) ?? { limit: 0, spent: 0, reserved: 0, left: 0 };
      all.set(name, figures);
      const { [meter]: spent = 0 } = budget?.spent ?? {};
      const { [meter]: reserved = 0 } = budget?.reserved ?? {};
      figures.limit += limit;
      figures.spent += spent;
      figures.reserved += reserved;
      figures.left += Math.max(0, limit - spent - reserved);
    }
  }
  return all;
}
