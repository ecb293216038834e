import { refusal } from '../../internal/validate.js';
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
