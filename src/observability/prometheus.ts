import { Counter, Gauge, Histogram, type Registry, register } from 'prom-client';
import type { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { optional, options as readOptions, refusal } from '../internal/validate.js';
import { Attachment } from './attachment.js';
import { MetricsCollector, type MetricsSources, type MetricsWriter } from './metrics-collector.js';
import { METRICS, type MetricDefinition, type MetricKey } from './prometheus-metrics.js';

export type { MetricsSources } from './metrics-collector.js';

/** What `collectMetrics` needs of a registry: prom-client's has it. */
export interface MetricsRegistry {
  registerMetric(metric: never): void;
  removeSingleMetric(name: string): void;
  metrics(): Promise<string>;
}

/** Options of `collectMetrics`. */
export interface MetricsOptions {
  /**
   * Stands before every name.
   * @default 'pipeline_'
   */
  readonly prefix?: string;
  /**
   * Where the metrics are registered.
   * @default prom-client's own registry
   */
  readonly registry?: MetricsRegistry;
  /**
   * A manager, or a pool, a limiter and gates, to look at when metrics are read. Without it, gauges show what the last
   * event said: nothing before the first.
   */
  readonly sources?: MetricsSources;
}

/**
 * Counts and measures what the hooks tell, for Prometheus. Needs prom-client 15, an optional peer.
 *
 * Labels hold names of pools, limiters, gates and tools (at most 100 of each, the rest are `other`), outcomes and
 * reasons; never a task, a request, a tenant or a key.
 *
 * @returns a function that ends it, and takes the metrics out of the registry
 * @throws TypeError for a wrong option; what prom-client throws when a name is taken already
 * @example
 * const registry = new Registry();
 * collectMetrics(hooks, { registry, prefix: 'mirothinker_', sources: manager });
 * app.get('/metrics', async (_, response) => response.type(registry.contentType).send(await registry.metrics()));
 */
export function collectMetrics(hooks: LifecycleHooks, options: MetricsOptions = {}): () => void {
  readOptions('collectMetrics', options, ['prefix', 'registry', 'sources']);
  const prefix = optional('prefix', options.prefix, prefixOf) ?? 'pipeline_';
  const registry = optional('registry', options.registry, registryOf) ?? register;
  const { sources = {} } = options;
  if (typeof sources !== 'object') throw new TypeError(refusal('sources', 'an object', sources));
  const attachment = new Attachment(hooks);
  const metrics = new RegisteredMetrics(registry as unknown as Registry, prefix);
  new MetricsCollector(metrics, sources).listen(attachment);
  return () => {
    attachment.detach();
    metrics.remove();
  };
}

type Key<M extends 'count' | 'set' | 'measure'> = Parameters<MetricsWriter[M]>[0];
type Labels = Parameters<MetricsWriter['set']>[1];

/** The metrics as prom-client knows them, in a registry. */
class RegisteredMetrics implements MetricsWriter {
  readonly #registry: Registry;
  readonly #names: string[] = [];
  readonly #metrics = new Map<MetricKey, Counter | Gauge | Histogram>();
  readonly #readers = new Map<MetricKey, () => void>();

  constructor(registry: Registry, prefix: string) {
    this.#registry = registry;
    try {
      for (const [key, definition] of Object.entries<MetricDefinition>(METRICS)) {
        const name = prefix + definition.name;
        this.#metrics.set(key as MetricKey, this.#register(key as MetricKey, name, definition));
        this.#names.push(name);
      }
    } catch (error) {
      this.remove();
      throw error;
    }
  }

  count(key: Key<'count'>, labels: Labels, by = 1): void {
    (this.#metrics.get(key) as Counter).inc(labels, by);
  }

  set(key: Key<'set'>, labels: Labels, value: number): void {
    (this.#metrics.get(key) as Gauge).set(labels, value);
  }

  /** Takes milliseconds, tells seconds. */
  measure(key: Key<'measure'>, labels: Labels, ms: number): void {
    (this.#metrics.get(key) as Histogram).observe(labels, ms / 1_000);
  }

  /** Calls `read` each time one of the gauges is about to be read, so that it can set them. */
  onRead(keys: readonly Key<'set'>[], read: () => void): void {
    for (const key of keys) this.#readers.set(key, read);
  }

  remove(): void {
    for (const name of this.#names.splice(0)) this.#registry.removeSingleMetric(name);
  }

  #register(key: MetricKey, name: string, { type, help, labels, buckets }: MetricDefinition) {
    const common = { name, help, labelNames: [...labels], registers: [this.#registry] };
    if (type === 'counter') return new Counter(common);
    if (type === 'histogram') return new Histogram({ ...common, buckets: [...(buckets ?? [])] });
    return new Gauge({ ...common, collect: () => this.#readers.get(key)?.() });
  }
}

const prefixOf = (option: string, value: unknown): string => {
  if (typeof value !== 'string' || !/^[a-zA-Z_:][a-zA-Z0-9_:]*$|^$/.test(value)) {
    throw new TypeError(
      refusal(option, 'letters, digits and underscores, not beginning with a digit', value),
    );
  }
  return value;
};

const registryOf = (option: string, value: MetricsRegistry): MetricsRegistry => {
  if (typeof value?.registerMetric !== 'function') {
    throw new TypeError(refusal(option, 'a registry of prom-client', value));
  }
  return value;
};
