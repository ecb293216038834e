import type { Attachment } from '../../hooks/attachment.js';
import { nowMs } from '../../internal/clock.js';
import { budgetUse } from '../budget-use.js';
import { type FleetFigures, fleetFiguresOf } from '../fleet-figures.js';
import { type TenantFigures, TenantUse } from '../tenant-use.js';
import type { COUNTERS, FLEET_LEVELS, LEVELS, TOTALS, WAIT_TIMES, WORK_TIMES } from './instruments.js';
import type { LimiterFigures, MeasuredOptions, MetricsSources, PoolFigures } from './sources.js';

export type Labels = Readonly<Record<string, string>>;

/** How an operation ended, by an event. */
export interface Ending {
  readonly outcome: string;
  readonly error?: unknown;
}

/** Takes one measured value: milliseconds, or by how much a counter grows. */
export type Measure = (value: number, labels: Labels, ending?: Ending) => void;
/** Takes a value that is read at a scrape or collection. */
export type Observe = (value: number, labels: Labels) => void;

export type Measured = keyof typeof COUNTERS | keyof typeof WAIT_TIMES | keyof typeof WORK_TIMES;
/** Of an exporter. */
export type Instruments = Readonly<Record<Measured, Measure>>;

export type Reading = (observe: Observe) => void;
export type Read = keyof typeof LEVELS | keyof typeof FLEET_LEVELS | keyof typeof TOTALS | 'poolIdle';
/** What is read at each scrape or collection; of tenants only if they are followed. */
export type Readings = Readonly<
  Record<Exclude<Read, `tenant${string}`>, Reading> & Partial<Record<Read, Reading>>
>;

interface Emitted {
  readonly source: string;
}

type KeyState = 'ready' | 'half-open' | 'cooldown' | 'exhausted' | 'quarantined';
const KEY_STATES: readonly KeyState[] = ['ready', 'half-open', 'cooldown', 'exhausted', 'quarantined'];
const BUDGET_STATES = ['spent', 'reserved', 'left'] as const;

/** More names than this become `other`. */
const MAX_NAMES = 100;

/**
 * Bounds the number of values of one label. Pools, gates and tools are usually few, but a host that creates a gate per
 * customer, or takes tool names from a model, must not exhaust the memory of its metrics store.
 */
export class BoundedLabels {
  readonly #known = new Set<string>();

  /** Returns the name itself, or `other` for a new name beyond the bound. */
  name(name: string): string {
    if (this.#known.has(name)) return name;
    if (this.#known.size >= MAX_NAMES) return 'other';
    this.#known.add(name);
    return name;
  }
}

/**
 * What both exporters measure: events as they come, and levels when they are read.
 *
 * Invariants:
 * - Levels are set at a reading, never by an event: events only replace the last known figures.
 * - Levels of components with one label value are added up, as their counters are, except those of shared limits.
 * - Requests are counted by id, so one that began before the recording cannot make a level negative.
 */
export class Measurements {
  readonly #sources: readonly MetricsSources[];
  readonly #tenants: TenantUse | undefined;
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
  readonly #queued = new Set<string>();
  readonly #running = new Set<string>();

  constructor({ sources = [], tenants = 0 }: MeasuredOptions) {
    this.#sources = [sources].flat();
    this.#tenants = tenants === 0 ? undefined : new TenantUse(tenants);
  }

  /** Passes on what the events measure. */
  listen(attachment: Attachment, to: Instruments): void {
    this.#listenToRequests(attachment, to);
    this.#listenToLimiters(attachment, to);
    this.#listenToPools(attachment, to);
    this.#listenToGates(attachment, to);
    this.#tenants?.listen(attachment);
    this.#tenants?.listenToCosts(attachment);
    attachment
      .on('tool:finished', (p) =>
        to.toolDuration(p.durationMs, { tool: this.#tools.name(p.tool), outcome: p.outcome }, p),
      )
      .on('tool:disconnect-failed', ({ tool }) => to.disconnectFailures(1, { tool: this.#tools.name(tool) }))
      .on('hook:error', ({ event }) => to.hookErrors(1, { event }));
  }

  #listenToRequests(attachment: Attachment, to: Instruments): void {
    attachment
      .on('request:queued', ({ requestId }) => this.#queued.add(requestId))
      .on('request:started', ({ requestId, waitMs }) => {
        this.#queued.delete(requestId);
        this.#running.add(requestId);
        to.requestQueue(waitMs, {});
      })
      .on('request:finished', (p) => {
        this.#running.delete(p.requestId);
        to.requests(1, { outcome: p.outcome });
        to.requestDuration(p.durationMs, { outcome: p.outcome }, p);
      })
      .on('request:rejected', ({ requestId, outcome }) => {
        this.#queued.delete(requestId);
        to.requests(1, { outcome });
      });
  }

  #listenToLimiters(attachment: Attachment, to: Instruments): void {
    const limiter = (p: LimiterFigures & Emitted): string => {
      const name = this.#limiters.name(p.source);
      this.#limiterFigures.set(name, p);
      return name;
    };
    attachment
      .on('permit:acquired', (p) => to.permitWait(p.waitMs, { limiter: limiter(p) }))
      .on('permit:rejected', (p) => to.permitsRejected(1, { limiter: limiter(p), reason: p.reason }));
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

  #listenToPools(attachment: Attachment, to: Instruments): void {
    const pool = (p: PoolFigures & Emitted): string => {
      const name = this.#pools.name(p.source);
      this.#poolFigures.set(name, p);
      return name;
    };
    attachment
      .on('lease:acquired', (p) => to.leaseWait(p.waitMs, { pool: pool(p) }))
      .on('lease:released', (p) => to.leaseHeld(p.heldMs, { pool: pool(p) }))
      .on('lease:rejected', (p) => to.leasesRejected(1, { pool: pool(p), reason: p.reason }))
      .on('lease:revoked', (p) => to.leasesRevoked(1, { pool: pool(p), reason: p.reason }))
      .on('lease:leaked', (p) => to.leasesLeaked(1, { pool: pool(p), kind: p.kind }))
      .on('instance:created', (p) => to.instanceCreate(p.createMs, { pool: pool(p) }))
      .on('instance:create-failed', (p) => to.createFailures(1, { pool: pool(p) }))
      .on('instance:unhealthy', (p) => to.unhealthy(1, { pool: pool(p), stage: p.stage }))
      .on('instance:destroyed', (p) => to.destroyed(1, { pool: pool(p), reason: p.reason }))
      .on('instance:destroy-failed', (p) => to.destroyFailures(1, { pool: pool(p) }));
    if (this.#sources.some(({ pool }) => pool !== undefined)) return;
    attachment.on('lease:queued', pool).on('instance:creating', pool);
  }

  #listenToGates(attachment: Attachment, to: Instruments): void {
    const gate = (p: Emitted): string => this.#gates.name(p.source);
    const meter = (name: string): string => this.#meters.name(name);
    attachment
      .on('call:started', (p) => to.callAttempts(1, { gate: gate(p) }))
      .on('call:retried', (p) => to.callRetries(1, { gate: gate(p), class: p.class }))
      .on('call:throttled', (p) => to.callThrottles(1, { gate: gate(p), reason: p.reason }))
      .on('call:finished', (p) => {
        to.callDuration(p.durationMs, { gate: gate(p), outcome: p.outcome }, p);
        to.callWait(p.waitMs, { gate: gate(p) });
        for (const [name, amount] of Object.entries(p.cost ?? {}))
          to.callCost(amount, { gate: gate(p), meter: meter(name) });
      })
      .on('budget:exceeded', (p) => to.budgetRejections(1, { gate: gate(p), meter: meter(p.meter) }))
      .on('cache:hit', (p) => to.cacheLookups(1, { gate: gate(p), result: p.shared ? 'shared' : 'hit' }))
      .on('cache:miss', (p) => to.cacheLookups(1, { gate: gate(p), result: 'miss' }))
      .on('cache:store-failed', (p) => to.cacheStoreFailures(1, { gate: gate(p), operation: p.operation }))
      .on('key:cooldown', (p) => this.#setKey(p, 'cooldown', p.retryAfterMs))
      .on('key:quarantined', (p) => {
        this.#setKey(p, p.reason, p.retryAfterMs);
        to.quarantines(1, { gate: gate(p), reason: p.reason });
      })
      .on('key:restored', (p) => this.#setKey(p, 'ready'));
  }

  #setKey(
    { source, key }: Emitted & { readonly key: string },
    state: KeyState,
    retryAfterMs = Number.POSITIVE_INFINITY,
  ): void {
    const gate = this.#gates.name(source);
    // Keys of gates beyond the bound would be without bound.
    if (gate !== source) return;
    const keys = this.#keys.get(gate) ?? new Map();
    this.#keys.set(gate, keys.set(key, { state, untilMs: nowMs() + retryAfterMs }));
  }

  readings(): Readings {
    return {
      activeRequests: (observe) => observe(this.#running.size, {}),
      queuedRequests: (observe) => observe(this.#queued.size, {}),
      limiterActive: this.#ofLimiters((sum) => sum('active')),
      limiterQueued: this.#ofLimiters((sum) => sum('queued')),
      limiterMax: this.#ofLimiters((sum) => sum('maxConcurrent')),
      // Relative to `size`, not to the live instances: at 1 the next request waits.
      poolUsage: this.#ofPools((sum) => sum('leased') / sum('size')),
      poolSize: this.#ofPools((sum) => sum('size')),
      poolLive: this.#ofPools((sum) => sum('live')),
      poolLeased: this.#ofPools((sum) => sum('leased')),
      poolIdle: this.#ofPools((sum) => sum('live') - sum('leased')),
      poolQueued: this.#ofPools((sum) => sum('queued')),
      gateRunning: (observe) => {
        for (const [gate, all] of this.#gateFigures()) {
          const running = all.flatMap(({ running }) => (typeof running === 'number' ? running : []));
          if (running.length > 0) observe(sumOf(running), { gate });
        }
      },
      keys: (observe) => {
        for (const [gate, states] of this.#keyStates())
          for (const state of KEY_STATES)
            observe(states.filter((other) => other === state).length, { gate, state });
      },
      budgetAmount: (observe) => {
        const requests = this.#sources.flatMap((source) => source.requests?.() ?? []);
        for (const [meter, figures] of budgetUse(requests, (name) => this.#meters.name(name)))
          for (const state of BUDGET_STATES) observe(figures[state], { meter, state });
      },
      fleetActive: this.#ofFleet(({ active }) => active),
      fleetQueued: this.#ofFleet(({ queued }) => queued),
      fleetMax: this.#ofFleet(({ maxConcurrent }) => maxConcurrent),
      fleetMembers: this.#ofFleet(({ members }) => members),
      fleetAvailable: this.#ofFleet(({ available }) => Number(available)),
      fleetLost: this.#ofFleet(({ lost }) => lost),
      ...(this.#tenants && tenantReadings(this.#tenants)),
    };
  }

  #ofLimiters(figure: (sum: Sum<LimiterFigures>) => number): Reading {
    return (observe) => {
      const sources = this.#sources.flatMap(({ limiter }) => limiter ?? []);
      for (const [limiter, sum] of sumsOf(sources, this.#limiters, this.#limiterFigures))
        observe(figure(sum), { limiter });
    };
  }

  #ofPools(figure: (sum: Sum<PoolFigures>) => number): Reading {
    return (observe) => {
      const sources = this.#sources.flatMap(({ pool }) => pool ?? []);
      for (const [pool, sum] of sumsOf(sources, this.#pools, this.#poolFigures))
        observe(figure(sum), { pool });
    };
  }

  /** Of the limiters and gates that share their limits with other processes. */
  #ofFleet(figure: (figures: FleetFigures) => number | undefined): Reading {
    return (observe) => {
      const sources = this.#sources.flatMap(({ limiter, gates = [] }) => [limiter ?? [], gates].flat());
      for (const [limit, all] of figuresOf(sources, this.#limits))
        for (const stats of all) {
          const figures = fleetFiguresOf(limit, stats);
          const value = figures && figure(figures);
          if (value !== undefined) observe(value, { limit });
        }
    };
  }

  /** By label value. A manager accepts gates of any kind, so their figures are checked before they are used. */
  #gateFigures(): Map<string, { readonly running?: unknown; readonly keys?: unknown }[]> {
    const gates = figuresOf(
      this.#sources.flatMap(({ gates }) => gates ?? []),
      this.#gates,
    );
    return new Map([...gates].map(([gate, all]) => [gate, all.map(Object)]));
  }

  /** By label value. The figures of a gate cover all its keys, events only those that met a limit. */
  #keyStates(): Map<string, KeyState[]> {
    const atMs = nowMs();
    const states = new Map<string, KeyState[]>();
    for (const [gate, keys] of this.#keys) {
      const current = [...keys.values()].map(({ state, untilMs }) => (untilMs <= atMs ? 'ready' : state));
      states.set(gate, current);
    }
    for (const [gate, all] of this.#gateFigures()) {
      const keys = all.flatMap(({ keys }) => (Array.isArray(keys) ? [keys] : []));
      if (keys.length > 0)
        states.set(
          gate,
          keys.flat().map((key) => key?.state),
        );
    }
    return states;
  }
}

/** Adds up one figure of all components of one label value. */
type Sum<F> = (figure: keyof F) => number;

/** Of at least one value. */
const sumOf = (values: readonly number[]): number => values.reduce((sum, value) => sum + value);

/** By label value, the figures of the sources now; without any, those of the last events. */
function* sumsOf<F extends { readonly [K in keyof F]: number }>(
  sources: readonly { readonly name: string; stats(): F }[],
  labels: BoundedLabels,
  ofEvents: ReadonlyMap<string, F>,
): Generator<readonly [string, Sum<F>]> {
  const events = [...ofEvents].map(([label, figures]) => [label, [figures]] as const);
  for (const [label, all] of sources.length === 0 ? events : figuresOf(sources, labels))
    yield [label, (figure) => sumOf(all.map((figures) => figures[figure]))];
}

/** By label value, what the sources count; nothing of one that fails to, as one of the host's own may. */
function figuresOf<F>(
  sources: readonly { readonly name: string; stats(): F }[],
  labels: BoundedLabels,
): Map<string, F[]> {
  const all = new Map<string, F[]>();
  // Managers may share a gate or a limiter.
  for (const source of new Set(sources)) {
    try {
      const figures = source.stats();
      const label = labels.name(source.name);
      all.set(label, [...(all.get(label) ?? []), figures]);
    } catch {}
  }
  return all;
}

function tenantReadings(use: TenantUse) {
  const of =
    (figure: (figures: TenantFigures) => number): Reading =>
    (observe) => {
      for (const [tenant, figures] of use.figures()) observe(figure(figures), { tenant });
    };
  return {
    tenantRunning: of(({ running }) => running),
    tenantQueued: of(({ queued }) => queued),
    tenantStarted: of(({ started }) => started),
    tenantRunTime: of(({ runMs }) => runMs / 1_000),
    tenantWaitTime: of(({ waitMs }) => waitMs / 1_000),
    tenantCost: (observe: Observe) => {
      for (const [tenant, { spent }] of use.figures())
        for (const [meter, amount] of spent) observe(amount, { tenant, meter });
    },
  };
}
