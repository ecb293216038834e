import {
  COUNTERS,
  GAUGES,
  WAIT_TIMES,
  WORK_TIMES,
} from '../../src/observability/metrics/prometheus-metrics.js';

/** Name and labels of every Prometheus metric. */
export const METRICS = [COUNTERS, GAUGES, WAIT_TIMES, WORK_TIMES]
  .flatMap((table) => Object.values<readonly [string, string, ...string[]]>(table))
  .map(([name, , ...labels]) => ({ name, labels }));
