import {
  COUNTERS,
  FLEET_LEVELS,
  type Instrument,
  LEVELS,
  TOTALS,
  WAIT_TIMES,
  WORK_TIMES,
} from '../../src/observability/metrics/instruments.js';

/** Name and labels of every Prometheus metric. */
export const METRICS = [COUNTERS, LEVELS, FLEET_LEVELS, TOTALS, WAIT_TIMES, WORK_TIMES]
  .flatMap((table) => Object.values<Instrument>(table))
  .map(([name, , ...labels]) => ({ name, labels }));
