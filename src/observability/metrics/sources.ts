import type { BudgetFigures } from '../../hooks/events.js';
import { type Checks, refusal, wholeNumber } from '../../internal/validate.js';

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

/** What both exporters take. */
export interface MeasuredOptions {
  /**
   * One manager or several, or objects with a pool, a limiter and gates. Their levels are read at each scrape or collection;
   * those of components of one name are added up.
   * Levels of a kind without a source show the state after the last event, and nothing before the first.
   * @default none
   */
  readonly sources?: MetricsSources | readonly MetricsSources[] | undefined;
  /**
   * How many tenants have metrics of their own: those whose requests took longest lately, running or waiting. All others
   * become `other`. At most ten times as many names are ever used. Their names become label values or attributes. From 0 to
   * 1,000.
   * @default 0: nothing is exported by tenant
   */
  readonly tenants?: number | undefined;
}

export const MEASURED_CHECKS: Checks<MeasuredOptions> = {
  sources: (option, value) => {
    for (const sources of [value].flat())
      if (typeof sources !== 'object' || sources === null)
        throw new TypeError(refusal(option, 'an object or an array of objects', sources));
  },
  tenants: (option, value) => wholeNumber(option, value, 0, 1_000),
};
