import type { BudgetFigures } from '../../hooks/events.js';
import { refusal } from '../../internal/validate.js';
import { budgetUse, type MeterFigures } from '../budget-use.js';
import { type FleetFigures, fleetFiguresOf } from '../fleet-figures.js';

export interface PoolFigures {
  readonly size: number;
  readonly live: number;
  readonly leased: number;
  readonly queued: number;
}

export interface LimiterFigures {
  readonly maxConcurrent: number;
  readonly active: number;
  readonly queued: number;
}

/** The components whose `stats()` are read at each scrape. A `PipelineManager` fits. */
export interface MetricsSources {
  readonly pool?: { readonly name: string; stats(): PoolFigures } | undefined;
  readonly limiter?: { readonly name: string; stats(): LimiterFigures } | undefined;
  readonly gates?: readonly { readonly name: string; stats(): unknown }[] | undefined;
  /** The current requests, for their budgets. */
  requests?(): readonly { readonly budget?: BudgetFigures }[];
}

/** Throws unless it is one object or an array of them. */
export const sourcesOf = (
  option: string,
  value: MetricsSources | readonly MetricsSources[],
): readonly MetricsSources[] => {
  const all: readonly MetricsSources[] = Array.isArray(value) ? value : [value];
  for (const sources of all) {
    if (typeof sources !== 'object' || sources === null) {
      throw new TypeError(refusal(option, 'an object or an array of objects', sources));
    }
  }
  return all;
};

/** Of the limiters and gates that share their limits with other processes. */
export const fleetFigures = (sources: readonly MetricsSources[]): FleetFigures[] =>
  sources
    .flatMap(({ limiter, gates = [] }) => [limiter ?? [], gates].flat())
    .flatMap((source) => fleetFiguresOf(source.name, source.stats()) ?? []);

/** Of the current requests, by meter. */
export const budgetFigures = (
  sources: readonly MetricsSources[],
  nameOf: (meter: string) => string,
): Map<string, MeterFigures> =>
  budgetUse(
    sources.flatMap((source) => source.requests?.() ?? []),
    nameOf,
  );

/** The parts of a budget's caps. */
export const BUDGET_STATES = ['spent', 'reserved', 'left'] as const;
