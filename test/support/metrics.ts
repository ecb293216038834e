import {
  COUNTERS,
  GAUGES,
  SOURCE_COUNTERS,
  TENANT_COUNTERS,
  TENANT_GAUGES,
  WAIT_TIMES,
  WORK_TIMES,
} from '../../src/observability/metrics/prometheus-metrics.js';

/** Name and labels of every Prometheus metric. */
export const METRICS = [
  COUNTERS,
  GAUGES,
  TENANT_COUNTERS,
  TENANT_GAUGES,
  SOURCE_COUNTERS,
  WAIT_TIMES,
  WORK_TIMES,
]
  .flatMap((table) => Object.values<readonly [string, string, ...string[]]>(table))
  .map(([name, , ...labels]) => ({ name, labels }));
