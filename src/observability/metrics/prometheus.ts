/**
 * Lifecycle events as metrics, for Prometheus and OpenTelemetry.
 *
 * - `prometheus.ts`: `collectMetrics`, on prom-client.
 * - `prometheus-metrics.ts`: name, help and labels of each Prometheus metric; the buckets and the bound on label values that
 *   both exporters share.
 * - `otel-metrics.ts`: the OpenTelemetry instruments; `traceTo` creates them together with the spans.
 *
 * @module pipeline-pool/prometheus
 */

import { Counter, Gauge, Histogram, type Registry, register } from 'prom-client';
import { Attachment } from '../../hooks/attachment.js';
import type { LifecycleHooks } from '../../hooks/lifecycle-hooks.js';
import { nowMs } from '../../internal/clock.js';
import { optional, options as readOptions, refusal } from '../../internal/validate.js';
import {
  BoundedLabels,
  COUNTERS,
  GAUGES,
  WAIT_BUCKETS,
  WAIT_TIMES,
  WORK_BUCKETS,
  WORK_TIMES,
} from './prometheus-metrics.js';

/** The methods of prom-client's registry that `collectMetrics` calls. */
export interface MetricsRegistry {
  registerMetric(metric: never): void;
  removeSingleMetric(name: string): void;
  metrics(): Promise<string>;
}

interface PoolFigures {
  readonly size: number;
  readonly live: number;
  readonly leased: number;
  readonly queued: number;
}

interface LimiterFigures {
  readonly maxConcurrent: number;
  readonly active: number;
  readonly queued: number;
}

/** The components whose `stats()` are read at each scrape. A `PipelineManager` fits. */
export interface MetricsSources {
  readonly pool?: { readonly name: string; stats(): PoolFigures };
  readonly limiter?: { readonly name: string; stats(): LimiterFigures };
  readonly gates?: readonly { readonly name: string; stats(): unknown }[];
}

/** Options of `collectMetrics`. */
export interface MetricsOptions {
  /**
   * Prefix of every metric name.
   * @default 'pipeline_'
   */
  readonly prefix?: string;
  /**
   * The registry for the metrics.
   * @default prom-client's default registry
   */
  readonly registry?: MetricsRegistry;
  /**
   * One manager or several, or objects with a pool, a limiter and gates. Their gauges are read at each scrape. Gauges of
   * a kind without a source show the state after the last event, and no sample before the first.
   * @default none
   */
  readonly sources?: MetricsSources | readonly MetricsSources[];
}

/**
 * Exports the lifecycle events as Prometheus metrics. Requires prom-client 15, an optional peer dependency.
 *
 * Label values are names of pools, limiters, gates, tools and meters of budgets (at most 100 of each, all others become `other`), outcomes and
 * reasons; never a task, a request, a tenant or an API key. Durations are in seconds.
 *
 * @returns a function that removes the listeners, and the metrics from the registry
 * @throws {TypeError} for an invalid option, naming the option and the value
 * @throws {Error} from prom-client if the registry already has a metric of the same name
 * @example
 * const registry = new Registry();
 * collectMetrics(hooks, { registry, prefix: 'mirothinker_', sources: manager });
 * app.get('/metrics', async (_, response) => response.type(registry.contentType).send(await registry.metrics()));
 */
export function collectMetrics(hooks: LifecycleHooks, options: MetricsOptions = {}): () => void {
  readOptions('collectMetrics', options, ['prefix', 'registry', 'sources']);
  const prefix = optional('prefix', options.prefix, prefixOf) ?? 'pipeline_';
  const registry = optional('registry', options.registry, registryOf) ?? register;
  const sources = optional('sources', options.sources, sourcesOf) ?? [];
  const attachment = new Attachment(hooks);
  const collector = new PrometheusCollector(registry as unknown as Registry, prefix, sources);
  collector.listen(attachment);
  return () => {
    attachment.detach();
    collector.remove();
  };
}

type Metrics = Readonly<
  Record<keyof typeof COUNTERS, Counter> &
    Record<keyof typeof WAIT_TIMES | keyof typeof WORK_TIMES, Histogram>
>;

interface Emitted {
  readonly source: string;
}

type KeyState = 'ready' | 'half-open' | 'cooldown' | 'exhausted' | 'quarantined';
const KEY_STATES: readonly KeyState[] = ['ready', 'half-open', 'cooldown', 'exhausted', 'quarantined'];
const OUTCOMES = ['ok', 'failed', 'aborted', 'timeout', 'revoked', 'shutdown'] as const;

/**
 * Invariants:
 * - Gauges are set at a scrape, never by an event: events only replace the last known figures.
 * - Requests are counted by id, so one that began before the collection cannot make a gauge negative.
 */
class PrometheusCollector {
  readonly #registry: Registry;
  readonly #sources: readonly MetricsSources[];
  readonly #metrics: Metrics;
  readonly #names: string[] = [];
  readonly #pools = new BoundedLabels();
  readonly #limiters = new BoundedLabels();
  readonly #gates = new BoundedLabels();
  readonly #tools = new BoundedLabels();
  readonly #meters = new BoundedLabels();
  /** By label value, the figures of the last event. */
  readonly #poolFigures = new Map<string, PoolFigures>();
  readonly #limiterFigures = new Map<string, LimiterFigures>();
  /** By gate and key, the state that the last event reported and when it ends. */
  readonly #keys = new Map<string, Map<string, { readonly state: KeyState; readonly untilMs: number }>>();
  readonly #queued = new Set<string>();
  readonly #running = new Set<string>();

  constructor(registry: Registry, prefix: string, sources: readonly MetricsSources[]) {
    this.#registry = registry;
    this.#sources = sources;
    this.#metrics = this.#register(prefix);
    // `rate()` misses the first increment unless the counter was scraped at 0.
    for (const outcome of OUTCOMES) this.#metrics.requests.inc({ outcome }, 0);
  }

  remove(): void {
    for (const name of this.#names.splice(0)) this.#registry.removeSingleMetric(name);
  }

  listen(attachment: Attachment): void {
    const { toolDuration, disconnectFailures, hookErrors } = this.#metrics;
    this.#listenToRequests(attachment);
    this.#listenToLimiters(attachment);
    this.#listenToPools(attachment);
    this.#listenToGates(attachment);
    attachment
      .on('tool:finished', ({ tool, outcome, durationMs }) =>
        toolDuration.observe({ tool: this.#tools.name(tool), outcome }, durationMs / 1_000),
      )
      .on('tool:disconnect-failed', ({ tool }) => disconnectFailures.inc({ tool: this.#tools.name(tool) }))
      .on('hook:error', ({ event }) => hookErrors.inc({ event }));
  }

  #listenToRequests(attachment: Attachment): void {
    const { requests, requestDuration, requestQueue } = this.#metrics;
    attachment
      .on('request:queued', ({ requestId }) => this.#queued.add(requestId))
      .on('request:started', ({ requestId, waitMs }) => {
        this.#queued.delete(requestId);
        this.#running.add(requestId);
        requestQueue.observe(waitMs / 1_000);
      })
      .on('request:finished', ({ requestId, outcome, durationMs }) => {
        this.#running.delete(requestId);
        requests.inc({ outcome });
        requestDuration.observe({ outcome }, durationMs / 1_000);
      })
      .on('request:rejected', ({ requestId, outcome }) => {
        this.#queued.delete(requestId);
        requests.inc({ outcome });
      });
  }

  #listenToLimiters(attachment: Attachment): void {
    const { permitWait, permitsRejected } = this.#metrics;
    const label = (p: LimiterFigures & Emitted) => {
      const limiter = this.#limiters.name(p.source);
      this.#limiterFigures.set(limiter, p);
      return { limiter };
    };
    attachment
      .on('permit:acquired', (p) => permitWait.observe(label(p), p.waitMs / 1_000))
      .on('permit:rejected', (p) => permitsRejected.inc({ ...label(p), reason: p.reason }));
    if (this.#sources.some(({ limiter }) => limiter !== undefined)) return;
    attachment
      .on('permit:queued', label)
      .on('permit:released', label)
      .on('limit:changed', ({ source, maxConcurrent }) => {
        const limiter = this.#limiters.name(source);
        const { active = 0, queued = 0 } = this.#limiterFigures.get(limiter) ?? {};
        this.#limiterFigures.set(limiter, { maxConcurrent, active, queued });
      });
  }

  #listenToPools(attachment: Attachment): void {
    const m = this.#metrics;
    const label = (p: PoolFigures & Emitted) => {
      const pool = this.#pools.name(p.source);
      this.#poolFigures.set(pool, p);
      return { pool };
    };
    attachment
      .on('lease:acquired', (p) => m.leaseWait.observe(label(p), p.waitMs / 1_000))
      .on('lease:released', (p) => m.leaseHeld.observe(label(p), p.heldMs / 1_000))
      .on('lease:rejected', (p) => m.leasesRejected.inc({ ...label(p), reason: p.reason }))
      .on('lease:revoked', (p) => m.leasesRevoked.inc({ ...label(p), reason: p.reason }))
      .on('lease:leaked', (p) => m.leasesLeaked.inc({ ...label(p), kind: p.kind }))
      .on('instance:created', (p) => m.instanceCreate.observe(label(p), p.createMs / 1_000))
      .on('instance:create-failed', (p) => m.createFailures.inc(label(p)))
      .on('instance:unhealthy', (p) => m.unhealthy.inc({ ...label(p), stage: p.stage }))
      .on('instance:destroyed', (p) => m.destroyed.inc({ ...label(p), reason: p.reason }))
      .on('instance:destroy-failed', (p) => m.destroyFailures.inc(label(p)));
    if (this.#sources.some(({ pool }) => pool !== undefined)) return;
    attachment.on('lease:queued', label).on('instance:creating', label);
  }

  #listenToGates(attachment: Attachment): void {
    const m = this.#metrics;
    const label = (p: Emitted) => ({ gate: this.#gates.name(p.source) });
    attachment
      .on('call:started', (p) => m.callAttempts.inc(label(p)))
      .on('call:retried', (p) => m.callRetries.inc({ ...label(p), class: p.class }))
      .on('call:throttled', (p) => m.callThrottles.inc({ ...label(p), reason: p.reason }))
      .on('call:finished', (p) => {
        m.callDuration.observe({ ...label(p), outcome: p.outcome }, p.durationMs / 1_000);
        m.callWait.observe(label(p), p.waitMs / 1_000);
        for (const [meter, amount] of Object.entries(p.cost ?? {}))
          m.callCost.inc({ ...label(p), meter: this.#meters.name(meter) }, amount);
      })
      .on('budget:exceeded', (p) =>
        m.budgetRejections.inc({ ...label(p), meter: this.#meters.name(p.meter) }),
      )
      .on('cache:hit', (p) => m.cacheLookups.inc({ ...label(p), result: p.shared ? 'shared' : 'hit' }))
      .on('cache:miss', (p) => m.cacheLookups.inc({ ...label(p), result: 'miss' }))
      .on('key:cooldown', (p) => this.#setKey(p, 'cooldown', p.retryAfterMs))
      .on('key:quarantined', (p) => {
        this.#setKey(p, p.reason, p.retryAfterMs);
        m.quarantines.inc({ ...label(p), reason: p.reason });
      })
      .on('key:restored', (p) => this.#setKey(p, 'ready'));
  }

  #setKey(
    { source, key }: Emitted & { readonly key: string },
    state: KeyState,
    retryAfterMs = Number.POSITIVE_INFINITY,
  ): void {
    const keys = this.#keys.get(source) ?? new Map();
    this.#keys.set(source, keys.set(key, { state, untilMs: nowMs() + retryAfterMs }));
  }

  /** What each gauge sets at a scrape. */
  readonly #gauges: Readonly<Record<keyof typeof GAUGES, (gauge: Gauge) => void>> = {
    activeRequests: (gauge) => gauge.set(this.#running.size),
    queuedRequests: (gauge) => gauge.set(this.#queued.size),
    limiterActive: (gauge) => this.#eachLimiter((limiter, { active }) => gauge.set({ limiter }, active)),
    limiterQueued: (gauge) => this.#eachLimiter((limiter, { queued }) => gauge.set({ limiter }, queued)),
    limiterMax: (gauge) =>
      this.#eachLimiter((limiter, { maxConcurrent }) => gauge.set({ limiter }, maxConcurrent)),
    // Relative to `size`, not to the live instances: at 1 the next request waits.
    poolUsage: (gauge) => this.#eachPool((pool, { leased, size }) => gauge.set({ pool }, leased / size)),
    poolSize: (gauge) => this.#eachPool((pool, { size }) => gauge.set({ pool }, size)),
    poolLive: (gauge) => this.#eachPool((pool, { live }) => gauge.set({ pool }, live)),
    poolLeased: (gauge) => this.#eachPool((pool, { leased }) => gauge.set({ pool }, leased)),
    poolQueued: (gauge) => this.#eachPool((pool, { queued }) => gauge.set({ pool }, queued)),
    gateRunning: (gauge) => {
      for (const { name, running } of this.#gateFigures()) {
        if (typeof running === 'number') gauge.set({ gate: this.#gates.name(name) }, running);
      }
    },
    keys: (gauge) => {
      for (const [name, states] of this.#keyStates()) {
        const gate = this.#gates.name(name);
        for (const state of KEY_STATES) {
          gauge.set({ gate, state }, states.filter((other) => other === state).length);
        }
      }
    },
  };

  #eachLimiter(set: (limiter: string, figures: LimiterFigures) => void): void {
    const current = this.#sources.flatMap(({ limiter }) => limiter ?? []);
    for (const limiter of current) set(this.#limiters.name(limiter.name), limiter.stats());
    if (current.length === 0) for (const [name, figures] of this.#limiterFigures) set(name, figures);
  }

  #eachPool(set: (pool: string, figures: PoolFigures) => void): void {
    const current = this.#sources.flatMap(({ pool }) => pool ?? []);
    for (const pool of current) set(this.#pools.name(pool.name), pool.stats());
    if (current.length === 0) for (const [name, figures] of this.#poolFigures) set(name, figures);
  }

  /** A manager accepts gates of any kind, so their figures are checked before they are used. */
  #gateFigures(): { readonly name: string; readonly running?: unknown; readonly keys?: unknown }[] {
    return this.#sources
      .flatMap(({ gates }) => gates ?? [])
      .map((gate) => ({ ...(gate.stats() as object | undefined), name: gate.name }));
  }

  /** By gate. The figures of a gate cover all its keys, events only those that met a limit. */
  #keyStates(): Map<string, KeyState[]> {
    const atMs = nowMs();
    const states = new Map<string, KeyState[]>();
    for (const [gate, keys] of this.#keys) {
      const current = [...keys.values()].map(({ state, untilMs }) => (untilMs <= atMs ? 'ready' : state));
      states.set(gate, current);
    }
    for (const { name, keys } of this.#gateFigures()) {
      if (Array.isArray(keys))
        states.set(
          name,
          keys.map(({ state }) => state),
        );
    }
    return states;
  }

  #register(prefix: string): Metrics {
    const metrics: Record<string, Counter | Histogram> = {};
    const common = ([suffix, help, ...labelNames]: readonly [string, string, ...string[]]) => {
      const name = prefix + suffix;
      this.#names.push(name);
      return { name, help, labelNames, registers: [this.#registry] };
    };
    try {
      for (const [key, row] of Object.entries(COUNTERS)) metrics[key] = new Counter(common(row));
      for (const [key, row] of Object.entries(WAIT_TIMES))
        metrics[key] = new Histogram({ ...common(row), buckets: WAIT_BUCKETS });
      for (const [key, row] of Object.entries(WORK_TIMES))
        metrics[key] = new Histogram({ ...common(row), buckets: WORK_BUCKETS });
      for (const [key, definition] of Object.entries(GAUGES)) {
        const read = this.#gauges[key as keyof typeof GAUGES];
        const gauge: Gauge = new Gauge({ ...common(definition), collect: () => read(gauge) });
      }
    } catch (error) {
      // The name that failed is not ours to remove.
      this.#names.pop();
      this.remove();
      throw error;
    }
    return metrics as Metrics;
  }
}

const prefixOf = (option: string, value: unknown): string => {
  if (typeof value !== 'string' || !/^[a-zA-Z_:][a-zA-Z0-9_:]*$|^$/.test(value)) {
    throw new TypeError(refusal(option, 'letters, digits and underscores, not starting with a digit', value));
  }
  return value;
};

const registryOf = (option: string, value: MetricsRegistry): MetricsRegistry => {
  if (typeof value?.registerMetric !== 'function') {
    throw new TypeError(refusal(option, 'a prom-client registry', value));
  }
  return value;
};

const sourcesOf = (
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
