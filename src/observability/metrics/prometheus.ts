/**
 * Lifecycle events as metrics, for Prometheus and OpenTelemetry.
 *
 * - `prometheus.ts`: `collectMetrics`, on prom-client.
 * - `prometheus-metrics.ts`: name, help and labels of each Prometheus metric; the buckets and the bound on label values that
 *   both exporters share.
 * - `sources.ts`: the components whose figures are read at each scrape or collection.
 * - `otel-metrics.ts`: the OpenTelemetry instruments; `traceTo` creates them together with the spans.
 *
 * @module pipeline-pool/prometheus
 */

import { Counter, Gauge, Histogram, type Registry, register } from 'prom-client';
import { Attachment } from '../../hooks/attachment.js';
import type { LifecycleHooks } from '../../hooks/lifecycle-hooks.js';
import { nowMs } from '../../internal/clock.js';
import { optional, options as readOptions, refusal, wholeNumber } from '../../internal/validate.js';
import { TenantUse } from '../tenant-use.js';
import {
  BoundedLabels,
  COUNTERS,
  GAUGES,
  SOURCE_COUNTERS,
  TENANT_COUNTERS,
  TENANT_GAUGES,
  WAIT_BUCKETS,
  WAIT_TIMES,
  WORK_BUCKETS,
  WORK_TIMES,
} from './prometheus-metrics.js';
import {
  BUDGET_STATES,
  budgetFigures,
  fleetFigures,
  type LimiterFigures,
  type MetricsSources,
  type PoolFigures,
  sourcesOf,
} from './sources.js';

export type { MetricsSources } from './sources.js';

/** The methods of prom-client's registry that `collectMetrics` calls. */
export interface MetricsRegistry {
  registerMetric(metric: never): void;
  removeSingleMetric(name: string): void;
  metrics(): Promise<string>;
}

/** Options of `collectMetrics`. */
export interface MetricsOptions {
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
  /**
   * One manager or several, or objects with a pool, a limiter and gates. Their gauges are read at each scrape. Gauges of
   * a kind without a source show the state after the last event, and no sample before the first.
   * @default none
   */
  readonly sources?: MetricsSources | readonly MetricsSources[] | undefined;
  /**
   * How many tenants have metrics of their own: those whose requests took longest lately, running or waiting. All others become `other`. At most
   * ten times as many names are ever used. Their names become label values. From 0 to 1,000.
   * @default 0: nothing is exported by tenant
   */
  readonly tenants?: number | undefined;
}

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
  readOptions('collectMetrics', options, ['prefix', 'registry', 'sources', 'tenants']);
  const prefix = optional('prefix', options.prefix, prefixOf) ?? 'pipeline_';
  const registry = optional('registry', options.registry, registryOf) ?? register;
  const sources = optional('sources', options.sources, sourcesOf) ?? [];
  const tenants =
    optional('tenants', options.tenants, (option, value) => wholeNumber(option, value, 0, 1_000)) ?? 0;
  const attachment = new Attachment(hooks);
  const collector = new PrometheusCollector(registry as unknown as Registry, prefix, sources, tenants);
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

/** What the constructors of all metrics take, from their row. */
type Common = (row: readonly [string, string, ...string[]]) => {
  name: string;
  help: string;
  labelNames: string[];
  registers: Registry[];
};

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
  readonly #limits = new BoundedLabels();
  readonly #gates = new BoundedLabels();
  readonly #tools = new BoundedLabels();
  readonly #meters = new BoundedLabels();
  /** By label value, the figures of the last event. */
  readonly #poolFigures = new Map<string, PoolFigures>();
  readonly #limiterFigures = new Map<string, LimiterFigures>();
  /** By gate and key, the state that the last event reported and when it ends. */
  readonly #keys = new Map<string, Map<string, { readonly state: KeyState; readonly untilMs: number }>>();
  readonly #tenants: TenantUse | undefined;
  readonly #queued = new Set<string>();
  readonly #running = new Set<string>();

  constructor(registry: Registry, prefix: string, sources: readonly MetricsSources[], tenants: number) {
    this.#tenants = tenants === 0 ? undefined : new TenantUse(tenants);
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
    this.#tenants?.listen(attachment);
    this.#tenants?.listenToCosts(attachment);
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
    const limiter = (p: LimiterFigures & Emitted) => {
      const name = this.#limiters.name(p.source);
      this.#limiterFigures.set(name, p);
      return name;
    };
    attachment
      .on('permit:acquired', (p) => permitWait.observe({ limiter: limiter(p) }, p.waitMs / 1_000))
      .on('permit:rejected', (p) => permitsRejected.inc({ limiter: limiter(p), reason: p.reason }));
    if (this.#sources.some(({ limiter }) => limiter !== undefined)) return;
    attachment
      .on('permit:queued', limiter)
      .on('permit:released', limiter)
      .on('limit:changed', ({ source, maxConcurrent }) => {
        const limiter = this.#limiters.name(source);
        const { active = 0, queued = 0 } = this.#limiterFigures.get(limiter) ?? {};
        this.#limiterFigures.set(limiter, { maxConcurrent, active, queued });
      });
  }

  #listenToPools(attachment: Attachment): void {
    const m = this.#metrics;
    const pool = (p: PoolFigures & Emitted) => {
      const name = this.#pools.name(p.source);
      this.#poolFigures.set(name, p);
      return name;
    };
    attachment
      .on('lease:acquired', (p) => m.leaseWait.observe({ pool: pool(p) }, p.waitMs / 1_000))
      .on('lease:released', (p) => m.leaseHeld.observe({ pool: pool(p) }, p.heldMs / 1_000))
      .on('lease:rejected', (p) => m.leasesRejected.inc({ pool: pool(p), reason: p.reason }))
      .on('lease:revoked', (p) => m.leasesRevoked.inc({ pool: pool(p), reason: p.reason }))
      .on('lease:leaked', (p) => m.leasesLeaked.inc({ pool: pool(p), kind: p.kind }))
      .on('instance:created', (p) => m.instanceCreate.observe({ pool: pool(p) }, p.createMs / 1_000))
      .on('instance:create-failed', (p) => m.createFailures.inc({ pool: pool(p) }))
      .on('instance:unhealthy', (p) => m.unhealthy.inc({ pool: pool(p), stage: p.stage }))
      .on('instance:destroyed', (p) => m.destroyed.inc({ pool: pool(p), reason: p.reason }))
      .on('instance:destroy-failed', (p) => m.destroyFailures.inc({ pool: pool(p) }));
    if (this.#sources.some(({ pool }) => pool !== undefined)) return;
    attachment.on('lease:queued', pool).on('instance:creating', pool);
  }

  #listenToGates(attachment: Attachment): void {
    const m = this.#metrics;
    const gate = (p: Emitted) => this.#gates.name(p.source);
    attachment
      .on('call:started', (p) => m.callAttempts.inc({ gate: gate(p) }))
      .on('call:retried', (p) => m.callRetries.inc({ gate: gate(p), class: p.class }))
      .on('call:throttled', (p) => m.callThrottles.inc({ gate: gate(p), reason: p.reason }))
      .on('call:finished', (p) => {
        m.callDuration.observe({ gate: gate(p), outcome: p.outcome }, p.durationMs / 1_000);
        m.callWait.observe({ gate: gate(p) }, p.waitMs / 1_000);
        for (const [meter, amount] of Object.entries(p.cost ?? {}))
          m.callCost.inc({ gate: gate(p), meter: this.#meters.name(meter) }, amount);
      })
      .on('budget:exceeded', (p) =>
        m.budgetRejections.inc({ gate: gate(p), meter: this.#meters.name(p.meter) }),
      )
      .on('cache:hit', (p) => m.cacheLookups.inc({ gate: gate(p), result: p.shared ? 'shared' : 'hit' }))
      .on('cache:miss', (p) => m.cacheLookups.inc({ gate: gate(p), result: 'miss' }))
      .on('cache:store-failed', (p) => m.cacheStoreFailures.inc({ gate: gate(p), operation: p.operation }))
      .on('key:cooldown', (p) => this.#setKey(p, 'cooldown', p.retryAfterMs))
      .on('key:quarantined', (p) => {
        this.#setKey(p, p.reason, p.retryAfterMs);
        m.quarantines.inc({ gate: gate(p), reason: p.reason });
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
    budgetAmount: (gauge) => {
      gauge.reset();
      for (const [meter, figures] of budgetFigures(this.#sources, (name) => this.#meters.name(name)))
        for (const state of BUDGET_STATES) gauge.set({ meter, state }, figures[state]);
    },
    fleetActive: (gauge) => this.#eachFleet('active', gauge),
    fleetQueued: (gauge) => this.#eachFleet('queued', gauge),
    fleetMax: (gauge) => this.#eachFleet('maxConcurrent', gauge),
    fleetMembers: (gauge) => this.#eachFleet('members', gauge),
    fleetAvailable: (gauge) => this.#eachFleet('available', gauge),
  };

  /** Sets the gauge, or counts, for each limit that is shared with other processes. */
  #eachFleet(
    of: 'active' | 'queued' | 'maxConcurrent' | 'members' | 'available' | 'lost',
    metric: Gauge | Counter,
  ): void {
    metric.reset();
    for (const figures of fleetFigures(this.#sources)) {
      const value = figures[of];
      if (value !== undefined) metric.inc({ limit: this.#limits.name(figures.name) }, Number(value));
    }
  }

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

  #registerTenants(use: TenantUse, common: Common): void {
    for (const of of ['running', 'queued'] as const) {
      const gauge: Gauge = new Gauge({
        ...common(TENANT_GAUGES[of]),
        collect: () => {
          gauge.reset();
          for (const [tenant, figures] of use.figures()) gauge.set({ tenant }, figures[of]);
        },
      });
    }
    for (const of of ['started', 'runMs', 'waitMs'] as const) {
      const counter: Counter = new Counter({
        ...common(TENANT_COUNTERS[of]),
        collect: () => {
          counter.reset();
          for (const [tenant, figures] of use.figures())
            counter.inc({ tenant }, of === 'started' ? figures[of] : figures[of] / 1_000);
        },
      });
    }
    const spent: Counter = new Counter({
      ...common(TENANT_COUNTERS.spent),
      collect: () => {
        spent.reset();
        for (const [tenant, figures] of use.figures())
          for (const [meter, amount] of figures.spent) spent.inc({ tenant, meter }, amount);
      },
    });
  }

  #register(prefix: string): Metrics {
    const metrics: Record<string, Counter | Histogram> = {};
    const common: Common = ([suffix, help, ...labelNames]) => {
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
      if (this.#tenants !== undefined) this.#registerTenants(this.#tenants, common);
      const collect = (): void => this.#eachFleet('lost', lost);
      const lost: Counter = new Counter({ ...common(SOURCE_COUNTERS.fleetLost), collect });
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
