/**
 * Lifecycle events as metrics, for Prometheus and OpenTelemetry.
 *
 * - `prometheus.ts`: `collectMetrics`, on prom-client.
 * - `otel-metrics.ts`: the OpenTelemetry instruments; `traceTo` creates them together with the spans.
 * - `instruments.ts`: name, help and labels of each metric, for both exporters.
 * - `measurements.ts`: what events measure, and what is read at each scrape or collection.
 * - `sources.ts`: the components whose figures are read then.
 *
 * @module pipeline-pool/prometheus
 */

import { Counter, Gauge, Histogram, type Registry, register } from 'prom-client';
import { Attachment } from '../../hooks/attachment.js';
import type { LifecycleHooks } from '../../hooks/lifecycle-hooks.js';
import { type Checks, checkEach, refusal } from '../../internal/validate.js';
import {
  COUNTERS,
  FLEET_LEVELS,
  type Instrument,
  LEVELS,
  TOTALS,
  WAIT_BUCKETS,
  WAIT_TIMES,
  WORK_BUCKETS,
  WORK_TIMES,
} from './instruments.js';
import { type Instruments, type Measure, Measurements, type Observe } from './measurements.js';
import { MEASURED_CHECKS, type MeasuredOptions } from './sources.js';

export type { MetricsSources } from './sources.js';

/** The methods of prom-client's registry that `collectMetrics` calls. */
export interface MetricsRegistry {
  registerMetric(metric: never): void;
  removeSingleMetric(name: string): void;
  metrics(): Promise<string>;
}

/** Options of `collectMetrics`. */
export interface MetricsOptions extends MeasuredOptions {
  /**
   * Prefix of every metric name.
   * @default 'pipeline_'
   */
  readonly prefix?: string | undefined;
  /**
   * The registry for the metrics.
   * @default prom-client's default registry
   */
  readonly registry?: MetricsRegistry | undefined;
}

const METRICS_CHECKS: Checks<MetricsOptions> = {
  ...MEASURED_CHECKS,
  prefix: (option, value) => {
    if (typeof value !== 'string' || !/^[a-zA-Z_:][a-zA-Z0-9_:]*$|^$/.test(value))
      throw new TypeError(
        refusal(option, 'letters, digits and underscores, not starting with a digit', value),
      );
  },
  registry: (option, value) => {
    if (typeof (value as MetricsRegistry)?.registerMetric !== 'function')
      throw new TypeError(refusal(option, 'a prom-client registry', value));
  },
};

/**
 * Exports the lifecycle events as Prometheus metrics. Requires prom-client 15, an optional peer dependency.
 *
 * Label values are names of pools, limiters, gates, tools and meters of budgets (at most 100 of each, all others become `other`), outcomes and
 * reasons, and tenants with `tenants`; never a task, a request or an API key. Durations are in seconds.
 *
 * @returns a function that removes the listeners, and the metrics from the registry
 * @throws {TypeError} for an invalid option, naming the option and the value
 * @throws {Error} from prom-client if the registry already has a metric of the same name
 * @example
 * const registry = new Registry();
 * collectMetrics(hooks, { registry, sources: manager });
 * app.get('/metrics', async (_, response) => response.type(registry.contentType).send(await registry.metrics()));
 */
export function collectMetrics(hooks: LifecycleHooks, options: MetricsOptions = {}): () => void {
  const { prefix = 'pipeline_', registry = register } = checkEach('collectMetrics', options, METRICS_CHECKS);
  const attachment = new Attachment(hooks);
  const measurements = new Measurements(options);
  const metrics = new PrometheusMetrics(registry as unknown as Registry, prefix, measurements);
  measurements.listen(attachment, metrics.instruments);
  return () => {
    attachment.detach();
    metrics.remove();
  };
}

const OUTCOMES = ['ok', 'failed', 'aborted', 'timeout', 'revoked', 'shutdown'] as const;

/** The metrics in one registry: all of them, or none if one of the names is taken. */
class PrometheusMetrics {
  readonly instruments: Instruments;
  readonly #registry: Registry;
  readonly #prefix: string;
  readonly #names: string[] = [];

  constructor(registry: Registry, prefix: string, measurements: Measurements) {
    this.#registry = registry;
    this.#prefix = prefix;
    try {
      this.instruments = this.#register(measurements);
    } catch (error) {
      // The name that failed is not ours to remove.
      this.#names.pop();
      this.remove();
      throw error;
    }
    // `rate()` misses the first increment unless the counter was scraped at 0.
    for (const outcome of OUTCOMES) this.instruments.requests(0, { outcome });
  }

  remove(): void {
    for (const name of this.#names.splice(0)) this.#registry.removeSingleMetric(name);
  }

  #register(measurements: Measurements): Instruments {
    const instruments: Record<string, Measure> = {};
    for (const [key, row] of Object.entries(COUNTERS)) {
      const counter = new Counter(this.#common(row));
      instruments[key] = (value, labels) => counter.inc(labels, value);
    }
    for (const [times, buckets] of [
      [WAIT_TIMES, WAIT_BUCKETS],
      [WORK_TIMES, WORK_BUCKETS],
    ] as const) {
      for (const [key, row] of Object.entries(times)) {
        const histogram = new Histogram({ ...this.#common(row), buckets });
        instruments[key] = (ms, labels) => histogram.observe(labels, ms / 1_000);
      }
    }
    const readings = measurements.readings();
    for (const [key, row] of Object.entries({ ...LEVELS, ...FLEET_LEVELS })) {
      const read = readings[key as keyof typeof readings];
      if (read === undefined) continue;
      const gauge: Gauge = new Gauge({
        ...this.#common(row),
        collect: () => {
          gauge.reset();
          read(tolerant((value, labels) => gauge.set(labels, value)));
        },
      });
    }
    for (const [key, row] of Object.entries(TOTALS)) {
      const read = readings[key as keyof typeof readings];
      if (read === undefined) continue;
      const counter: Counter = new Counter({
        ...this.#common(row),
        collect: () => {
          counter.reset();
          read(tolerant((value, labels) => counter.inc(labels, value)));
        },
      });
    }
    return instruments as Instruments;
  }

  /** What the constructors of all metrics take. */
  #common([suffix, help, ...labelNames]: Instrument) {
    const name = this.#prefix + suffix;
    this.#names.push(name);
    return { name, help, labelNames, registers: [this.#registry] };
  }
}

/** Leaves out what prom-client rejects, so that a wrong figure of the host's own gate does not cost the whole scrape. */
const tolerant =
  (observe: Observe): Observe =>
  (value, labels) => {
    try {
      observe(value, labels);
    } catch {}
  };
