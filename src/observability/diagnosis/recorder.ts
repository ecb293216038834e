import type { GateStats } from '../../gate/service-gate.js';
import { Attachment } from '../../hooks/attachment.js';
import type { LifecycleEvents } from '../../hooks/events.js';
import type { LifecycleHooks } from '../../hooks/lifecycle-hooks.js';
import { NEUTRAL_CONTEXT } from '../../internal/async-context.js';
import { nowMs } from '../../internal/clock.js';
import { refusal } from '../../internal/validate.js';
import type { Limiter, LimiterStats } from '../../limiter/limiter.js';
import { gateStatsOf, isCoolingDown } from '../../manager/health.js';
import type { RequestInfo } from '../../manager/request.js';
import type { PoolStats } from '../../pool/options.js';
import { fleetFiguresOf } from '../fleet-figures.js';
import { BudgetRecorder, type BudgetReport } from './budgets.js';
import { History } from './history.js';
import { type Machine, type MachineFigures, ProcessMachine } from './machine.js';
import { Pace, type PaceFinding } from './pace.js';
import { TenantRecorder, type TenantsReport } from './tenants.js';

/** What `diagnose` needs of a manager. A `PipelineManager` has it. */
export interface DiagnosedManager {
  readonly hooks: LifecycleHooks;
  readonly limiter: Pick<Limiter, 'name' | 'stats'>;
  readonly pool: { readonly name: string; readonly hooks: LifecycleHooks; stats(): PoolStats };
  readonly gates: readonly {
    readonly name: string;
    readonly hooks?: LifecycleHooks | undefined;
    stats(): unknown;
  }[];
  /** For tenants and budgets: whose requests count. @default those of all managers that share the hooks */
  readonly name?: string | undefined;
  /** For the requests that came before the recording, and the budgets of those that run. */
  requests?(): readonly RequestInfo[];
}

/** For tests. */
export interface RecorderParts {
  readonly now?: () => number;
  readonly machine?: Machine;
}

/** A number that is integrated over time. The levels of a gate start with its name and a colon. */
export type Level =
  | 'requests' // accepted and not finished
  | 'leased'
  | 'pool-short'
  | 'admission-short'
  | 'admission-paused'
  | 'tenant-capped' // requests that only the caps of their tenants hold back
  | 'creating' // requests that wait for a creation
  | 'readying'
  | `${string}:${'running' | 'at-bound' | 'in-window' | 'in-cooldown' | 'in-backoff'}`;

/** A number of events. The counts of a gate start with its name and a colon. */
export type Count =
  | 'created'
  | 'create.ms'
  | 'create-failed'
  | 'budgets' // requests that ended and had a budget
  | 'nearly-spent' // those of them that had used nearly all of it
  | `tenant:${string}` // its requests that began, and milliseconds that they ran and waited
  | `${string}:${'attempts' | 'calls' | 'cached' | 'rejected' | 'failed' | 'over-budget' | 'lost'}`;

/** The window that ends now. */
export interface Report {
  readonly windowMs: number;
  /** The average over the window; the present value if the recording has just started. */
  average(level: Level): number;
  count(count: Count): number;
  pace(gate: string): PaceFinding | undefined;
  readonly machine: MachineFigures;
  readonly limiter: LimiterStats & { readonly name: string };
  readonly pool: PoolStats & { readonly name: string };
  readonly gates: readonly GateStats[];
  readonly tenants: TenantsReport;
  readonly budgets: BudgetReport;
}

/** Milliseconds between two samples of a burst. Shorter changes are missed, which does not matter. */
const SAMPLE_EVERY_MS = 5;
/** Calls in flight whose concurrency at their start is kept; further calls are not compared. */
const MAX_CALLS = 10_000;

interface RecordedGate {
  readonly pace: Pace;
  /** How many calls were in flight when each of them started, by call id. */
  readonly calls: Map<number, number>;
}

/**
 * Records what a diagnosis is made from. It listens to requests, calls and creations. After an event it samples the stats
 * of limiter, pool and gates, at most twice per `SAMPLE_EVERY_MS`, and integrates them over time.
 *
 * Invariants:
 * - A request counts from its start, not from its end: one of half an hour is visible while it runs.
 * - Without events it does nothing; there is no periodic timer.
 * - Memory is bounded: sums by name and about sixty copies of them, whatever the traffic.
 * - Once it is stopped, or the pool is closed, it holds no listener, and its window ends at that moment.
 * - A limiter or a gate of the host's own that fails to count costs a sample, nothing else.
 */
export class Recorder {
  readonly #manager: DiagnosedManager;
  readonly #now: () => number;
  readonly #history: History;
  readonly #machine: Machine;
  readonly #tenants: TenantRecorder;
  readonly #budgets = new BudgetRecorder();
  /** By name, the gates of the manager; events of other gates count for nothing. */
  readonly #gates = new Map<string, RecordedGate>();
  readonly #attachments: Attachment[] = [];
  #levels: readonly (readonly [Level, number])[] = [];
  #counters = new Map<Count, number>();
  #sampledMs: number;
  #timer: NodeJS.Timeout | undefined;
  #stoppedMs: number | undefined;

  constructor(manager: DiagnosedManager, windowMs: number, { now = nowMs, machine }: RecorderParts = {}) {
    this.#manager = manager;
    this.#now = now;
    this.#sampledMs = now();
    this.#history = new History(windowMs, this.#sampledMs);
    this.#machine = machine ?? new ProcessMachine(windowMs, this.#history.sliceMs);
    this.#tenants = new TenantRecorder(manager.limiter);
    for (const { name } of manager.gates)
      this.#gates.set(name, { pace: new Pace(name, this.#sampledMs), calls: new Map() });
    this.#listen();
    this.#sample();
  }

  /** The window that ends now, or ended when the recording was stopped. */
  report(): Report {
    this.#sample();
    const now = this.#stoppedMs ?? this.#now();
    if (!this.isStopped) this.#readTotals(now);
    const span = this.#history.span(now);
    const levels = new Map(this.#levels);
    const { limiter, pool, gates } = this.#manager;
    const count = (name: Count): number => Math.round(span.sum(name));
    return {
      windowMs: span.ms,
      average: (level) => (span.ms > 0 ? span.sum(level) / span.ms : (levels.get(level) ?? 0)),
      count,
      pace: (gate) => this.#gates.get(gate)?.pace.judge(span),
      machine: this.#machine.figures(span),
      limiter: { ...limiter.stats(), name: limiter.name },
      pool: { ...pool.stats(), name: pool.name },
      gates: gateStatsOf(gates),
      tenants: this.#tenants.report(span.ms, span.sum),
      budgets: this.#budgets.report(count, this.#manager.requests?.()),
    };
  }

  get isStopped(): boolean {
    return this.#stoppedMs !== undefined;
  }

  /** Stops listening; what was recorded remains. */
  stop(): void {
    if (this.isStopped) return;
    this.#stoppedMs = this.#integrate();
    this.#readTotals(this.#stoppedMs);
    clearTimeout(this.#timer);
    for (const attachment of this.#attachments) attachment.detach();
    this.#machine.stop();
  }

  #listen(): void {
    const { hooks, pool, gates } = this.#manager;
    const onActivity = (): void => this.#onActivity();
    const requests = this.#attach(hooks)
      .on('request:queued', onActivity)
      .on('request:started', onActivity)
      .on('request:finished', ({ source, budget }) => {
        onActivity();
        if (budget === undefined || source !== (this.#manager.name ?? source)) return;
        this.#history.add('budgets', 1);
        if (this.#budgets.noteIfNearlySpent(budget)) this.#history.add('nearly-spent', 1);
      })
      .on('request:rejected', onActivity);
    this.#tenants.listen(requests, this.#manager.name, this.#manager.requests?.());
    this.#attach(pool.hooks)
      .on('instance:created', ({ source, createMs }) => {
        if (source !== pool.name) return;
        this.#count('created');
        this.#count('create.ms', createMs);
      })
      .on('instance:create-failed', ({ source }) => {
        if (source === pool.name) this.#count('create-failed');
      })
      // The last instance is destroyed after the pool was closed.
      .on('instance:destroyed', () => {
        if (pool.stats().state === 'closed') this.stop();
      });
    for (const gateHooks of new Set(gates.map((gate) => gate.hooks ?? hooks))) {
      this.#attach(gateHooks)
        .on('call:started', (payload) => this.#callStarted(payload))
        .on('call:retried', (payload) => this.#callRetried(payload))
        .on('call:throttled', onActivity)
        .on('call:finished', (payload) => this.#callFinished(payload))
        .on('budget:exceeded', (payload) => {
          this.#countOfGate(payload.source, 'over-budget');
          if (this.#gates.has(payload.source)) this.#budgets.exceeded.set(payload.source, payload);
        })
        .on('budget:unmetered', ({ source, meters }) => {
          if (this.#gates.has(source)) this.#budgets.unmetered.set(source, meters);
        });
    }
  }

  #attach(hooks: LifecycleHooks): Attachment {
    const attachment = new Attachment(hooks);
    this.#attachments.push(attachment);
    return attachment;
  }

  #count(name: Count, amount = 1): void {
    this.#onActivity();
    this.#history.add(name, amount);
  }

  #countOfGate(gate: string, what: 'rejected' | 'failed' | 'over-budget'): void {
    if (this.#gates.has(gate)) this.#count(`${gate}:${what}`);
  }

  #callStarted({ source, callId, attempt }: LifecycleEvents['call:started']): void {
    this.#onActivity();
    const calls = this.#gates.get(source)?.calls;
    if (calls === undefined || attempt > 1 || calls.size >= MAX_CALLS) return;
    calls.set(callId, calls.size + 1);
  }

  #callRetried({ source, status, class: judged }: LifecycleEvents['call:retried']): void {
    if (status === 429 || judged === 'rate-limited') this.#countOfGate(source, 'rejected');
    else if (judged === 'retryable') this.#countOfGate(source, 'failed');
  }

  #callFinished(payload: LifecycleEvents['call:finished']): void {
    this.#onActivity();
    const { source, callId, outcome, attempts, durationMs, waitMs } = payload;
    const gate = this.#gates.get(source);
    const inFlight = gate?.calls.get(callId);
    gate?.calls.delete(callId);
    if (outcome === 'rate-limited') this.#countOfGate(source, 'rejected');
    else if (outcome === 'retryable' || outcome === 'timeout') this.#countOfGate(source, 'failed');
    // Only calls with a single attempt show how long the service takes.
    else if (outcome === 'ok' && attempts === 1 && inFlight !== undefined)
      gate?.pace.note(this.#history, durationMs - waitMs, inFlight, this.#now());
  }

  /** Samples now, and once more after the burst that this event may belong to. */
  #onActivity(): void {
    if (this.#timer !== undefined) return;
    this.#sample();
    if (this.isStopped) return;
    NEUTRAL_CONTEXT.run(() => {
      this.#timer = setTimeout(() => {
        this.#timer = undefined;
        this.#sample();
      }, SAMPLE_EVERY_MS);
    });
  }

  /** Integrates the levels since the last sample, and reads the present ones. */
  #sample(): void {
    if (this.isStopped) return;
    if (this.#manager.pool.stats().state === 'closed') {
      this.stop();
      return;
    }
    const now = this.#integrate();
    try {
      this.#readStats();
    } catch {
      // The last levels stay. `diagnose` throws the error to its caller.
    }
    if (!this.#history.isDue(now)) return;
    this.#readTotals(now);
    this.#history.mark(now);
  }

  /** Returns the time up to which the levels are integrated now. */
  #integrate(): number {
    const now = this.#now();
    const history = this.#history;
    // A pause lies between two marks, so that its start is not interpolated into it.
    if (now - this.#sampledMs > history.sliceMs) history.mark(this.#sampledMs);
    for (const [level, value] of this.#levels) history.add(level, value * (now - this.#sampledMs));
    this.#sampledMs = now;
    return now;
  }

  #readStats(): void {
    const gates = gateStatsOf(this.#manager.gates);
    const pool = this.#manager.pool.stats();
    const limiter = { ...this.#manager.limiter.stats(), name: this.#manager.limiter.name };
    this.#tenants.noteNewlyCapped();
    this.#levels = [...requestLevels(limiter, pool, this.#tenants.beyondCaps), ...gates.flatMap(gateLevels)];
    for (const shared of [limiter, ...gates]) {
      const figures = fleetFiguresOf(shared.name, shared);
      if (figures !== undefined) this.#countTo(`${figures.name}:lost`, figures.lost);
    }
    for (const { name, attempts, calls, cache } of gates) {
      this.#countTo(`${name}:attempts`, attempts);
      this.#countTo(`${name}:calls`, calls);
      this.#countTo(`${name}:cached`, cache.hits + cache.shared);
    }
  }

  /** Reads what is too costly for each sample. */
  #readTotals(now: number): void {
    this.#machine.read(this.#history, now);
    this.#tenants.read((name, total) => this.#countTo(name, total, 0));
  }

  /** Counts by how much a running total has grown; `from` at its first reading. */
  #countTo(name: Count, total: number, from = total): void {
    this.#history.add(name, total - (this.#counters.get(name) ?? from));
    this.#counters.set(name, total);
  }
}

/**
 * What the queued requests wait for. A request that waits for an instance while slots are free waits for its creation or
 * preparation. Requests that wait for admission wait for the limiter if a slot is free that no request waits for; if none
 * is, they too wait for an instance, and a higher limit would not help them.
 */
function requestLevels(
  limiter: LimiterStats,
  pool: PoolStats,
  beyondCaps: number,
): readonly (readonly [Level, number])[] {
  const free = Math.max(0, pool.size - pool.leased);
  const beingMade = Math.min(pool.queued, free);
  const beingReadied = pool.readying + pool.resetting;
  const readying = beingReadied === 0 ? 0 : (beingMade * beingReadied) / (beingReadied + pool.creating);
  const capped = limiter.paused || limiter.active >= limiter.maxConcurrent ? 0 : beyondCaps;
  const unadmitted = limiter.paused || free > beingMade ? limiter.queued - capped : 0;
  return [
    ['requests', limiter.queued + pool.queued + pool.leased],
    ['leased', pool.leased],
    ['creating', beingMade - readying],
    ['readying', readying],
    ['admission-paused', limiter.paused ? unadmitted : 0],
    ['admission-short', limiter.paused ? 0 : unadmitted],
    ['tenant-capped', capped],
    ['pool-short', limiter.queued - capped + pool.queued - beingMade - unadmitted],
  ];
}

/** What the calls of a gate are doing or waiting for. */
function gateLevels(gate: GateStats): readonly (readonly [Level, number])[] {
  const { name, limiter, queuedForStart, backingOff } = gate;
  const queued = limiter?.queued ?? 0;
  const coolingDown = isCoolingDown(gate) || limiter?.paused === true;
  // While calls with a permit wait in the start queue, the calls behind them wait for the same.
  const startBlocked = queuedForStart > 0 || coolingDown;
  const atStart = queuedForStart + (startBlocked ? queued : 0);
  const halfOpen = gate.keys.every(({ state }) => state !== 'ready');
  return [
    [`${name}:running`, gate.running],
    [`${name}:at-bound`, startBlocked ? 0 : queued],
    [`${name}:in-window`, coolingDown || halfOpen ? 0 : atStart],
    [`${name}:in-cooldown`, (coolingDown || halfOpen ? atStart : 0) + (coolingDown ? backingOff : 0)],
    [`${name}:in-backoff`, coolingDown ? 0 : backingOff],
  ];
}

const recorders = /* @__PURE__ */ new WeakMap<DiagnosedManager, Recorder>();

/** Whether the manager is being recorded for `diagnose`. */
export const hasRecording = (manager: DiagnosedManager): boolean =>
  recorders.get(manager)?.isStopped === false;

/** The recorder of a manager, created with the first call; with `again` also if the last one has stopped. */
export function recorderOf(manager: DiagnosedManager, windowMs: number, again = false): Recorder {
  const current = recorders.get(manager);
  if (current !== undefined && !(again && current.isStopped)) return current;
  if (typeof manager?.pool?.stats !== 'function' || typeof manager.limiter?.stats !== 'function') {
    throw new TypeError(refusal('manager', 'a PipelineManager', manager));
  }
  const recorder = new Recorder(manager, windowMs);
  recorders.set(manager, recorder);
  return recorder;
}
