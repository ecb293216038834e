import type { Attachment } from './attachment.js';
import { BoundedLabels } from './bounded-labels.js';
import { KEY_STATES, type KeyState, KeyStates } from './key-states.js';
import type { MetricKeyOf } from './prometheus-metrics.js';

interface PoolFigures {
  readonly size: number;
  readonly live: number;
  readonly leased: number;
  readonly waiting: number;
}

interface LimiterFigures {
  readonly maxConcurrent: number;
  readonly active: number;
  readonly queued: number;
}

/** What is looked at each time metrics are read. A `PipelineManager` is such a thing. */
export interface MetricsSources {
  readonly pool?: { readonly name: string; stats(): PoolFigures };
  readonly limiter?: { readonly name: string; stats(): LimiterFigures };
  readonly gates?: readonly { readonly name: string; stats(): unknown }[];
}

type Labels = Readonly<Record<string, string>>;

/** Where metrics are written. */
export interface MetricsWriter {
  count(key: MetricKeyOf<'counter'>, labels: Labels, by?: number): void;
  set(key: MetricKeyOf<'gauge'>, labels: Labels, value: number): void;
  /** Takes milliseconds, tells seconds. */
  measure(key: MetricKeyOf<'histogram'>, labels: Labels, ms: number): void;
  /** Calls `read` each time one of the gauges is about to be read, so that it can set them. */
  onRead(keys: readonly MetricKeyOf<'gauge'>[], read: () => void): void;
}

const POOL_GAUGES = ['poolUsage', 'poolSize', 'poolLive', 'poolLeased', 'poolWaiting'] as const;
const LIMITER_GAUGES = ['limiterActive', 'limiterQueued', 'limiterMax'] as const;
const OUTCOMES = ['ok', 'failed', 'aborted', 'timeout', 'revoked', 'shutdown'] as const;

/** Translates events into metrics. */
export class MetricsCollector {
  readonly #metrics: MetricsWriter;
  readonly #sources: MetricsSources;
  readonly #pools = new BoundedLabels();
  readonly #limiters = new BoundedLabels();
  readonly #gates = new BoundedLabels();
  readonly #tools = new BoundedLabels();
  readonly #keys = new KeyStates();
  // By id, so that a request which began before the collection does not make a count negative.
  readonly #waiting = new Set<string>();
  readonly #running = new Set<string>();

  constructor(metrics: MetricsWriter, sources: MetricsSources) {
    this.#metrics = metrics;
    this.#sources = sources;
    // A rate needs to see a counter at 0 before it sees it at 1.
    for (const outcome of OUTCOMES) metrics.count('requests', { outcome }, 0);
    metrics.onRead(['activeRequests', 'waitingRequests'], () => {
      metrics.set('activeRequests', {}, this.#running.size);
      metrics.set('waitingRequests', {}, this.#waiting.size);
    });
    const { pool, limiter } = sources;
    if (pool !== undefined) metrics.onRead(POOL_GAUGES, () => this.#poolGauges(pool.name, pool.stats()));
    if (limiter !== undefined) {
      metrics.onRead(LIMITER_GAUGES, () => this.#limiterGauges(limiter.name, limiter.stats()));
    }
    metrics.onRead(['gateRunning', 'keys'], () => this.#readGates());
  }

  listen(attachment: Attachment): void {
    this.#listenToRequests(attachment);
    this.#listenToLimiters(attachment);
    this.#listenToPools(attachment);
    this.#listenToGates(attachment);
    attachment
      .on('tool:finished', ({ tool, outcome, durationMs }) =>
        this.#metrics.measure('toolDuration', { tool: this.#tools.name(tool), outcome }, durationMs),
      )
      .on('tool:disconnectFailed', ({ tool }) =>
        this.#metrics.count('disconnectFailures', { tool: this.#tools.name(tool) }),
      )
      .on('hook:error', ({ event }) => this.#metrics.count('hookErrors', { event }));
  }

  #listenToRequests(attachment: Attachment): void {
    attachment
      .on('request:queued', ({ requestId }) => this.#waiting.add(requestId))
      .on('request:started', ({ requestId, queuedMs }) => {
        this.#waiting.delete(requestId);
        this.#running.add(requestId);
        this.#metrics.measure('requestQueue', {}, queuedMs);
      })
      .on('request:finished', ({ requestId, outcome, durationMs }) => {
        this.#running.delete(requestId);
        this.#metrics.count('requests', { outcome });
        this.#metrics.measure('requestDuration', { outcome }, durationMs);
      })
      .on('request:rejected', ({ requestId, outcome }) => {
        this.#waiting.delete(requestId);
        this.#metrics.count('requests', { outcome });
      });
  }

  #listenToLimiters(attachment: Attachment): void {
    const told = (p: LimiterFigures & { source: string }): Labels => this.#limiterGauges(p.source, p);
    attachment
      .on('permit:queued', (p) => void told(p))
      .on('permit:acquired', (p) => this.#metrics.measure('permitWait', told(p), p.waitMs))
      .on('permit:released', (p) => void told(p))
      .on('permit:rejected', (p) => this.#metrics.count('permitsRejected', { ...told(p), reason: p.reason }))
      .on('limit:changed', ({ source, maxConcurrent }) =>
        this.#metrics.set('limiterMax', { limiter: this.#limiters.name(source) }, maxConcurrent),
      );
  }

  #listenToPools(attachment: Attachment): void {
    const told = (p: PoolFigures & { source: string }): Labels => this.#poolGauges(p.source, p);
    attachment
      .on('lease:queued', (p) => void told(p))
      .on('lease:acquired', (p) => this.#metrics.measure('leaseWait', told(p), p.waitMs))
      .on('lease:released', (p) => this.#metrics.measure('leaseHeld', told(p), p.heldMs))
      .on('lease:rejected', (p) => this.#metrics.count('leasesRejected', { ...told(p), reason: p.reason }))
      .on('lease:revoked', (p) => this.#metrics.count('leasesRevoked', { ...told(p), reason: p.reason }))
      .on('lease:leaked', (p) => this.#metrics.count('leasesLeaked', { ...told(p), kind: p.kind }))
      .on('instance:creating', (p) => void told(p))
      .on('instance:created', (p) => this.#metrics.measure('instanceCreate', told(p), p.createMs))
      .on('instance:createFailed', (p) => this.#metrics.count('createFailures', told(p)))
      .on('instance:unhealthy', (p) => this.#metrics.count('unhealthy', { ...told(p), stage: p.stage }))
      .on('instance:destroyed', (p) => this.#metrics.count('destroyed', { ...told(p), reason: p.reason }))
      .on('instance:destroyFailed', (p) => this.#metrics.count('destroyFailures', told(p)));
  }

  #listenToGates(attachment: Attachment): void {
    const gate = (p: { source: string }) => ({ gate: this.#gates.name(p.source) });
    attachment
      .on('call:started', (p) => this.#metrics.count('callAttempts', gate(p)))
      .on('call:retried', (p) => this.#metrics.count('callRetries', { ...gate(p), class: p.class }))
      .on('call:throttled', (p) => this.#metrics.count('callThrottles', { ...gate(p), reason: p.reason }))
      .on('call:finished', (p) => {
        this.#metrics.measure('callDuration', { ...gate(p), outcome: p.outcome }, p.durationMs);
        this.#metrics.measure('callWait', gate(p), p.waitMs);
      })
      .on('cache:hit', (p) =>
        this.#metrics.count('cacheLookups', { ...gate(p), result: p.shared ? 'shared' : 'hit' }),
      )
      .on('cache:miss', (p) => this.#metrics.count('cacheLookups', { ...gate(p), result: 'miss' }))
      .on('key:cooledDown', (p) => this.#keys.rests(p.source, p.key, 'throttled', p.forMs))
      .on('key:quarantined', (p) => {
        this.#keys.rests(p.source, p.key, p.reason, p.forMs);
        this.#metrics.count('quarantines', { ...gate(p), reason: p.reason });
      })
      .on('key:restored', (p) => this.#keys.restored(p.source, p.key));
  }

  #limiterGauges(name: string, { active, queued, maxConcurrent }: LimiterFigures): Labels {
    const labels = { limiter: this.#limiters.name(name) };
    this.#metrics.set('limiterActive', labels, active);
    this.#metrics.set('limiterQueued', labels, queued);
    this.#metrics.set('limiterMax', labels, maxConcurrent);
    return labels;
  }

  #poolGauges(name: string, { size, live, leased, waiting }: PoolFigures): Labels {
    const labels = { pool: this.#pools.name(name) };
    // How much of what the pool may ever hold is in use: at 1 the next request waits, however many instances live.
    this.#metrics.set('poolUsage', labels, leased / size);
    this.#metrics.set('poolSize', labels, size);
    this.#metrics.set('poolLive', labels, live);
    this.#metrics.set('poolLeased', labels, leased);
    this.#metrics.set('poolWaiting', labels, waiting);
    return labels;
  }

  #readGates(): void {
    // A gate's own figures know all its keys; events tell only of those that met a limit.
    const known = new Map(this.#keys.now());
    for (const { name, stats } of this.#gateFigures()) {
      if (typeof stats.running === 'number') {
        this.#metrics.set('gateRunning', { gate: this.#gates.name(name) }, stats.running);
      }
      if (Array.isArray(stats.keys))
        known.set(
          name,
          stats.keys.map(({ state }) => state),
        );
    }
    for (const [name, states] of known) {
      const gate = this.#gates.name(name);
      for (const state of KEY_STATES) {
        this.#metrics.set('keys', { gate, state }, states.filter((other) => other === state).length);
      }
    }
  }

  /** A manager does not know what kinds of gates it was given, so their figures are looked at with care. */
  #gateFigures(): { readonly name: string; readonly stats: GateFigures }[] {
    return (this.#sources.gates ?? []).map((gate) => ({ name: gate.name, stats: gate.stats() ?? {} }));
  }
}

interface GateFigures {
  readonly running?: unknown;
  readonly keys?: readonly { readonly state: KeyState }[];
}
