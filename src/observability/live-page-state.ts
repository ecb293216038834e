import type { GateStats } from '../gate/service-gate.js';
import type { RequestOutcome } from '../hooks/events.js';
import type { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { nowMs } from '../internal/clock.js';
import type { Limiter } from '../limiter/limiter.js';
import type { Diagnosis } from '../manager/diagnosis.js';
import { gateFigures } from '../manager/gate-figures.js';
import type { Health } from '../manager/health.js';
import type { PoolStats } from '../pool/pool-stats.js';
import { Attachment } from './attachment.js';
import { type Slot, Slots } from './live-page-slots.js';

/** What a page watches. A `PipelineManager` is one. */
export interface Watched {
  readonly name: string;
  readonly hooks: LifecycleHooks;
  readonly pool: { readonly name: string; readonly hooks: LifecycleHooks; stats(): PoolStats };
  readonly limiter: Pick<Limiter, 'stats'>;
  readonly gates: readonly { readonly name: string; stats(): unknown }[];
  health(): Health;
  diagnose(): Diagnosis;
}

/** What the page is told: figures and names, and nothing of what the tasks are about. Totals count from the mounting. */
export interface LiveState {
  readonly name: string;
  /** Milliseconds on a clock that goes on evenly; rates are made from it and the totals. */
  readonly atMs: number;
  readonly status: Health['status'];
  readonly reasons: readonly string[];
  readonly uptimeMs: number;
  readonly requests: {
    readonly active: number;
    readonly most: number;
    readonly queued: number;
    readonly begun: number;
    readonly waitedMs: number;
    readonly ok: number;
    readonly failed: number;
    readonly rejected: number;
  };
  readonly pool: Pick<PoolStats, 'size' | 'live' | 'leased' | 'waiting'> & {
    readonly slots: readonly Slot[];
  };
  readonly gates: readonly LiveGate[];
  readonly diagnosis: Pick<Diagnosis, 'findings'>;
}

type LiveGate = Pick<GateStats, 'name' | 'running' | 'backingOff' | 'attempts' | 'retries' | 'calls'> & {
  readonly most: number | null;
  readonly queued: number;
  /** Milliseconds until any key can serve; `null` if that needs a person. */
  readonly opensInMs: number | null;
  readonly cached: number;
  readonly keys: readonly { readonly key: string; readonly state: string; readonly free: number }[];
};

/** A diagnosis takes a moment to make, and does not change between two looks of an eye. */
const DIAGNOSE_EVERY_MS = 2_000;

/** Gathers what the page is told. It listens from the mounting on, so that the page knows which instance does what. */
export class LiveStateSource {
  readonly #watched: Watched;
  readonly #withTaskIds: boolean;
  readonly #slots: Slots;
  readonly #attachment: Attachment;
  readonly #totals = { begun: 0, waitedMs: 0, ok: 0, failed: 0, rejected: 0 };
  #diagnosis: { readonly atMs: number; readonly value: Diagnosis } | undefined;

  constructor(watched: Watched, withTaskIds: boolean) {
    this.#watched = watched;
    this.#withTaskIds = withTaskIds;
    this.#slots = new Slots(watched.pool);
    const totals = this.#totals;
    const ours = ({ source }: { readonly source: string }): boolean => source === watched.name;
    this.#attachment = new Attachment(watched.hooks)
      .on('request:started', (told) => {
        if (!ours(told)) return;
        totals.begun++;
        totals.waitedMs += told.queuedMs;
      })
      .on('request:finished', (told) => {
        if (ours(told)) totals[isFailure(told.outcome) ? 'failed' : 'ok']++;
      })
      .on('request:rejected', (told) => {
        if (ours(told)) totals.rejected++;
      });
  }

  state(): LiveState {
    const { name, pool, limiter, gates } = this.#watched;
    const health = this.#watched.health();
    const { size, live, leased, waiting } = pool.stats();
    const { maxConcurrent, queued } = limiter.stats();
    const atMs = nowMs();
    if (this.#diagnosis === undefined || atMs - this.#diagnosis.atMs >= DIAGNOSE_EVERY_MS) {
      this.#diagnosis = { atMs, value: this.#watched.diagnose() };
    }
    return {
      name,
      atMs: Math.round(atMs),
      status: health.status,
      reasons: health.reasons,
      uptimeMs: 1000 * health.uptime_seconds,
      requests: {
        active: health.active_requests,
        most: maxConcurrent,
        queued,
        ...this.#totals,
        waitedMs: Math.round(this.#totals.waitedMs),
      },
      pool: { size, live, leased, waiting, slots: this.#slots.list(this.#withTaskIds) },
      gates: gateFigures(gates).map(liveGate),
      diagnosis: { findings: this.#diagnosis.value.findings },
    };
  }

  close(): void {
    this.#slots.close();
    this.#attachment.detach();
  }
}

/** A client that leaves is no failure of the service. */
const isFailure = (outcome: RequestOutcome): boolean => outcome !== 'ok' && outcome !== 'aborted';

function liveGate(gate: GateStats): LiveGate {
  const { name, running, limiter, waitingForStart, backingOff, calls, attempts, retries, cache } = gate;
  return {
    name,
    running,
    most: limiter?.maxConcurrent ?? null,
    queued: (limiter?.queued ?? 0) + waitingForStart,
    backingOff,
    calls,
    attempts,
    retries,
    cached: cache.hits + cache.shared,
    opensInMs: Number.isFinite(gate.opensInMs) ? Math.ceil(gate.opensInMs) : null,
    keys: gate.keys.map(({ key, state, free }) => ({ key, state, free: Math.round(100 * free) / 100 })),
  };
}
