import type { GateStats } from '../../gate/service-gate.js';
import { Attachment } from '../../hooks/attachment.js';
import type { BudgetFigures, RequestOutcome } from '../../hooks/events.js';
import type { LifecycleHooks } from '../../hooks/lifecycle-hooks.js';
import { nowMs } from '../../internal/clock.js';
import { escapeControls } from '../../internal/format.js';
import type { Limiter } from '../../limiter/limiter.js';
import type { Health } from '../../manager/health.js';
import { gateStatsOf } from '../../manager/health.js';
import type { RequestInfo } from '../../manager/request.js';
import type { PoolStats } from '../../pool/options.js';
import { budgetUse, type MeterFigures } from '../budget-use.js';
import { diagnose } from '../diagnosis/diagnosis.js';
import { type Diagnosis, diagnosisOf } from '../diagnosis/findings.js';
import { hasRecording, Recorder } from '../diagnosis/recorder.js';
import { type FleetFigures, fleetFiguresOf } from '../fleet-figures.js';
import { TenantUse } from '../tenant-use.js';

/** What a page shows. A `PipelineManager` fits. */
export interface Watched {
  readonly name: string;
  readonly hooks: LifecycleHooks;
  readonly pool: { readonly name: string; readonly hooks: LifecycleHooks; stats(): PoolStats };
  readonly limiter: Pick<Limiter, 'name' | 'stats'>;
  readonly gates: readonly {
    readonly name: string;
    readonly hooks?: LifecycleHooks | undefined;
    stats(): unknown;
  }[];
  health(): Health;
  /** For the budgets and the tenants of the requests. */
  requests?(): readonly RequestInfo[];
}

/** One update: figures and names, and nothing of the contents of tasks. */
export interface LiveState {
  readonly name: string;
  /** Monotonic; rates are calculated from it and the totals. */
  readonly atMs: number;
  readonly status: Health['status'];
  readonly reasons: readonly string[];
  readonly uptimeMs: number;
  /** Totals count from the first watcher. */
  readonly requests: {
    readonly active: number;
    readonly limit: number;
    readonly queued: number;
    readonly started: number;
    readonly waitMs: number;
    readonly ok: number;
    readonly failed: number;
    readonly rejected: number;
    readonly fleet?: FleetFigures | undefined;
  };
  readonly pool: Pick<PoolStats, 'size' | 'live' | 'leased' | 'queued'> & {
    readonly slots: readonly Slot[];
  };
  /** The tenants that use most, where tenants are named. */
  readonly tenants: readonly LiveTenant[];
  /** What the budgets of the current requests allow, where they have any; the meter with the smallest part left first. */
  readonly budgets: readonly LiveMeter[];
  readonly gates: readonly LiveGate[];
  readonly diagnosis: Pick<Diagnosis, 'findings'>;
}

/** One tenant; its share of the work follows from the run time. */
interface LiveTenant {
  readonly name: string;
  readonly running: number;
  readonly queued: number;
  /** Since the first watcher. */
  readonly runMs: number;
  /** What its calls spent of budgets since then, by meter. */
  readonly spent: readonly (readonly [meter: string, amount: number])[];
}

interface LiveMeter extends MeterFigures {
  readonly meter: string;
  /** Calls that did not fit, since the first watcher. */
  readonly rejected: number;
}

type SlotState = 'creating' | 'idle' | 'running';

/** One instance at its place on the page. */
interface Slot {
  readonly place: number;
  readonly instanceId: number;
  readonly state: SlotState;
  /** Time in this state. */
  readonly ageMs: number;
  readonly taskId?: string;
  /** Of the request that runs on it: the meter of its budget that has the least left. */
  readonly budget?: { readonly meter: string; readonly spent: number; readonly limit: number };
}

type LiveGate = Pick<GateStats, 'name' | 'running' | 'backingOff' | 'attempts' | 'retries' | 'calls'> & {
  readonly limit: number | null;
  readonly queued: number;
  /** Until any key can serve; `null` if no key recovers without intervention. */
  readonly retryAfterMs: number | null;
  readonly cached: number;
  readonly fleet?: FleetFigures | undefined;
  readonly keys: readonly { readonly key: string; readonly state: string; readonly free: number }[];
};

const SHOWN_TENANTS = 20;
const SHOWN_METERS = 20;

/** A diagnosis takes a moment to create and changes slowly. */
const DIAGNOSE_EVERY_MS = 2_000;
const DIAGNOSIS_WINDOW_MS = 120_000;

/**
 * Creates the updates of one manager.
 *
 * Invariants:
 * - It has listeners, and a recording for the diagnosis, exactly while it is attached.
 * - It keeps one entry per live instance; an instance keeps its place as long as it is live.
 */
export class StateSource {
  readonly #manager: Watched;
  readonly #showTaskIds: boolean;
  readonly #instances = new Map<number, Omit<Slot, 'ageMs'> & { readonly sinceMs: number }>();
  readonly #totals = { started: 0, waitMs: 0, ok: 0, failed: 0, rejected: 0 };
  #use = new TenantUse(SHOWN_TENANTS);
  /** Calls that did not fit into budgets, by meter. */
  readonly #rejected = new Map<string, number>();
  #attachments: readonly Attachment[] = [];
  /** Unless the host records diagnoses itself. */
  #recorder: Recorder | undefined;
  #diagnosis: { readonly atMs: number; readonly value: Diagnosis } | undefined;

  constructor(manager: Watched, showTaskIds: boolean) {
    this.#manager = manager;
    this.#showTaskIds = showTaskIds;
  }

  /** Starts listening; a second call is a no-op. */
  attach(): void {
    if (this.#attachments.length > 0) return;
    this.#use = new TenantUse(SHOWN_TENANTS);
    this.#attachments = [this.#listenToRequests(), this.#listenToInstances(), ...this.#listenToGates()];
    if (!hasRecording(this.#manager)) this.#recorder = new Recorder(this.#manager, DIAGNOSIS_WINDOW_MS);
  }

  /** Stops listening; a second call is a no-op. */
  detach(): void {
    for (const attachment of this.#attachments) attachment.detach();
    this.#attachments = [];
    this.#instances.clear();
    this.#recorder?.stop();
    this.#recorder = undefined;
    this.#diagnosis = undefined;
  }

  get isOver(): boolean {
    return this.#manager.pool.stats().state === 'closed';
  }

  /** The present state as JSON; `undefined` if a limiter or a gate of the host cannot be read. */
  update(): string | undefined {
    try {
      return JSON.stringify(this.#state());
    } catch {
      return undefined;
    }
  }

  #state(): LiveState {
    const { name, pool, limiter, gates } = this.#manager;
    const health = this.#manager.health();
    const { size, live, leased, queued: queuedForLease } = pool.stats();
    const admission = limiter.stats();
    const { maxConcurrent, queued } = admission;
    const atMs = nowMs();
    return {
      name,
      atMs: Math.round(atMs),
      status: health.status,
      reasons: health.reasons,
      uptimeMs: 1000 * health.uptime_seconds,
      requests: {
        active: health.active_requests,
        limit: maxConcurrent,
        queued,
        ...this.#totals,
        waitMs: Math.round(this.#totals.waitMs),
        fleet: fleetFiguresOf(limiter.name, admission),
      },
      pool: { size, live, leased, queued: queuedForLease, slots: this.#slots(atMs) },
      tenants: this.#liveTenants(),
      budgets: this.#liveBudgets(),
      gates: gateStatsOf(gates).map(liveGate),
      diagnosis: { findings: this.#diagnose(atMs).findings },
    };
  }

  #diagnose(atMs: number): Diagnosis {
    if (this.#diagnosis === undefined || atMs - this.#diagnosis.atMs >= DIAGNOSE_EVERY_MS) {
      const recorder = this.#recorder;
      const value = recorder === undefined ? diagnose(this.#manager) : diagnosisOf(recorder.report());
      this.#diagnosis = { atMs, value };
    }
    return this.#diagnosis.value;
  }

  #liveTenants(): readonly LiveTenant[] {
    const all: LiveTenant[] = [];
    for (const [name, { running, queued, runMs, spent }] of this.#use.figures())
      all.push({
        name: shown(name),
        running,
        queued,
        runMs: Math.round(runMs),
        spent: [...spent].slice(0, SHOWN_METERS).map(([meter, amount]) => [shown(meter), amount]),
      });
    return all;
  }

  #liveBudgets(): readonly LiveMeter[] {
    const use = budgetUse(this.#manager.requests?.() ?? [], shown);
    const none: MeterFigures = { limit: 0, spent: 0, reserved: 0, left: 0 };
    return [...new Set([...use.keys(), ...this.#rejected.keys()])]
      .map((meter) => ({ meter, ...(use.get(meter) ?? none), rejected: this.#rejected.get(meter) ?? 0 }))
      .sort((a, b) => partLeft(a) - partLeft(b) || b.rejected - a.rejected)
      .slice(0, SHOWN_METERS);
  }

  #slots(atMs: number): readonly Slot[] {
    const budgets = new Map<number, Slot['budget']>();
    for (const { instanceId, budget } of this.#manager.requests?.() ?? [])
      if (instanceId !== undefined && budget !== undefined) budgets.set(instanceId, tightest(budget));
    return [...this.#instances.values()]
      .map(({ sinceMs, ...slot }) => {
        const budget = slot.state === 'running' ? budgets.get(slot.instanceId) : undefined;
        const ageMs = Math.round(atMs - sinceMs);
        return { ...slot, ageMs, ...(budget === undefined ? {} : { budget }) };
      })
      .sort((a, b) => a.place - b.place);
  }

  #listenToRequests(): Attachment {
    const { name, hooks } = this.#manager;
    const totals = this.#totals;
    const attachment = new Attachment(hooks)
      .on('request:started', ({ source, waitMs }) => {
        if (source !== name) return;
        totals.started++;
        totals.waitMs += waitMs;
      })
      .on('request:finished', ({ source, outcome }) => {
        if (source === name) totals[isFailure(outcome) ? 'failed' : 'ok']++;
      })
      .on('request:rejected', ({ source }) => {
        if (source === name) totals.rejected++;
      });
    this.#use.listen(attachment, name, this.#manager.requests?.());
    return attachment;
  }

  #listenToGates(): readonly Attachment[] {
    const { gates, hooks } = this.#manager;
    const names = new Set(gates.map(({ name }) => name));
    const attachments = [...new Set(gates.map((gate) => gate.hooks ?? hooks))].map(
      (gateHooks) => new Attachment(gateHooks),
    );
    for (const attachment of attachments) {
      this.#use.listenToCosts(attachment);
      attachment.on('budget:exceeded', ({ source, meter }) => {
        const name = shown(meter);
        if (!names.has(source) || (!this.#rejected.has(name) && this.#rejected.size >= SHOWN_METERS)) return;
        this.#rejected.set(name, (this.#rejected.get(name) ?? 0) + 1);
      });
    }
    return attachments;
  }

  #listenToInstances(): Attachment {
    const { name, hooks } = this.#manager.pool;
    type Payload = { readonly source: string; readonly instanceId: number; readonly taskId?: string };
    const enter = (state: SlotState) => (p: Payload) => {
      if (p.source === name) this.#enter(p, state);
    };
    const leave = ({ source, instanceId }: Payload) => {
      if (source === name) this.#instances.delete(instanceId);
    };
    // The destruction of an instance may be reported before the end of its lease.
    const returned = (p: Payload) => {
      if (p.source === name && this.#instances.has(p.instanceId)) this.#enter(p, 'idle');
    };
    return new Attachment(hooks)
      .on('instance:creating', enter('creating'))
      .on('instance:created', enter('idle'))
      .on('lease:acquired', enter('running'))
      .on('lease:released', returned)
      .on('lease:revoked', returned)
      .on('instance:create-failed', leave)
      .on('instance:destroyed', leave)
      .on('instance:destroy-failed', leave);
  }

  #enter(
    { instanceId, taskId }: { readonly instanceId: number; readonly taskId?: string },
    state: SlotState,
  ): void {
    const place = this.#instances.get(instanceId)?.place ?? this.#freePlace();
    const shown =
      this.#showTaskIds && state === 'running' && taskId !== undefined
        ? { taskId: escapeControls(taskId) }
        : {};
    this.#instances.set(instanceId, { place, instanceId, state, sinceMs: nowMs(), ...shown });
  }

  #freePlace(): number {
    const taken = new Set([...this.#instances.values()].map(({ place }) => place));
    let place = 0;
    while (taken.has(place)) place++;
    return place;
  }
}

const shown = (name: string): string => escapeControls(name).slice(0, 100);

/** Of a meter that no current request has, the whole: it comes last. */
const partLeft = ({ left, limit }: MeterFigures): number => (limit > 0 ? left / limit : 1);

/** An abort by the client is not a failure of the service. */
const isFailure = (outcome: RequestOutcome): boolean => outcome !== 'ok' && outcome !== 'aborted';

/** The meter with the smallest share left; `undefined` if none has a cap. */
function tightest({ limits, spent }: BudgetFigures): Slot['budget'] {
  const used = (meter: string): number => (spent[meter] ?? 0) / (limits[meter] as number);
  const [meter] = Object.keys(limits)
    .filter((name) => Number.isFinite(used(name)) && Number.isFinite(limits[name]))
    .sort((a, b) => used(b) - used(a));
  if (meter === undefined) return undefined;
  return { meter: escapeControls(meter), spent: spent[meter] as number, limit: limits[meter] as number };
}

function liveGate(gate: GateStats): LiveGate {
  const { name, running, limiter, queuedForStart, backingOff, calls, attempts, retries, cache } = gate;
  return {
    name,
    running,
    limit: limiter?.maxConcurrent ?? null,
    queued: (limiter?.queued ?? 0) + queuedForStart,
    backingOff,
    calls,
    attempts,
    retries,
    cached: cache.hits + cache.shared,
    fleet: fleetFiguresOf(name, gate),
    retryAfterMs: Number.isFinite(gate.retryAfterMs) ? Math.ceil(gate.retryAfterMs) : null,
    keys: gate.keys.map(({ key, state, free }) => ({ key, state, free: Math.round(100 * free) / 100 })),
  };
}
