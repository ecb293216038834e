import type { GateStats } from '../../gate/service-gate.js';
import type { LifecycleEventName, LifecycleEvents } from '../../hooks/events.js';
import type { LifecycleHooks, LifecycleListener } from '../../hooks/lifecycle-hooks.js';
import { NEUTRAL_CONTEXT } from '../../internal/async-context.js';
import { nowMs } from '../../internal/clock.js';
import { durationMs, options } from '../../internal/validate.js';
import type { Limiter, LimiterStats } from '../../limiter/limiter.js';
import type { PoolStats } from '../../pool/pool-stats.js';
import { gateFigures, isCoolingDown } from '../gate-figures.js';
import { History } from './history.js';
import { type Machine, type MachineFigures, ProcessMachine } from './machine.js';
import { Pace, type PaceFinding } from './pace.js';

/** Whom to record. */
export interface Recorded {
  readonly hooks: LifecycleHooks;
  readonly limiter: Pick<Limiter, 'name' | 'stats'>;
  readonly pool: { readonly name: string; readonly hooks: LifecycleHooks; stats(): PoolStats };
  readonly gates: readonly { readonly name: string; readonly hooks?: LifecycleHooks; stats(): unknown }[];
}

/** Options of the recording. */
export interface DiagnosisOptions {
  /** Milliseconds that are looked back, from 1,000 on. @default 120_000 (two minutes) */
  readonly windowMs?: number;
}

const WINDOW_MS = 120_000;

/** The window that the option `diagnosis` of a manager asks for. */
export function diagnosisWindow(given: boolean | DiagnosisOptions = {}): number {
  if (typeof given === 'boolean') return WINDOW_MS;
  const { windowMs = WINDOW_MS } = options('diagnosis', given, ['windowMs']);
  return durationMs('diagnosis.windowMs', windowMs, 1_000);
}

/** For tests. */
export interface RecorderParts {
  readonly now?: () => number;
  readonly machine?: Machine;
}

/** What is so many at a moment, and matters for how long. Those of a gate begin with its name and a colon. */
export type Level =
  | 'requests' // taken and not over
  | 'leased'
  | 'pool-short'
  | 'admission-short'
  | 'admission-paused'
  | 'creating' // requests that wait for it
  | 'readying'
  | `${string}:${'running' | 'at-bound' | 'in-window' | 'in-cooldown' | 'in-backoff'}`;

/** What happens, and is counted. Those of a gate begin with its name and a colon. */
export type Count =
  | 'created'
  | 'create.ms'
  | 'create-failed'
  | `${string}:${'attempts' | 'calls' | 'cached' | 'refused' | 'failed'}`;

/** What is known of the window that ends now. */
export interface Report {
  readonly windowMs: number;
  /** How many on average; how many now, where the recording has just begun. */
  average(level: Level): number;
  count(count: Count): number;
  pace(gate: string): PaceFinding | undefined;
  readonly machine: MachineFigures;
  readonly limiter: LimiterStats & { readonly name: string };
  readonly pool: PoolStats & { readonly name: string };
  readonly gates: readonly GateStats[];
}

/** Between two looks at the figures. What comes and goes within it is missed, and does not matter. */
const LOOK_EVERY_MS = 5;
/** Calls under way of which it is known with how many they began; more are not told apart. */
const MOST_CALLS = 10_000;

/**
 * Records what a diagnosis is made from. It listens to requests, calls and creations; when one of them stirs it looks at
 * the figures of limiter, pool and gates, at most twice in `LOOK_EVERY_MS`, and adds up how many there were for how long.
 *
 * Invariants:
 * - Who waits or runs counts from the beginning, not from the end: a request of half an hour is seen while it runs.
 * - While nothing happens it does nothing; no timer goes round.
 * - Bounded memory: sums by name and some sixty copies of them, whatever the traffic.
 */
export class Recorder {
  readonly #parts: Recorded;
  readonly #windowMs: number;
  readonly #now: () => number;
  readonly #history: History;
  readonly #machine: Machine;
  readonly #paces = new Map<string, Pace>();
  /** How many calls were under way as each of them began, by gate and call. */
  readonly #calls = new Map<string, Map<number, number>>();
  readonly #removers: (() => void)[] = [];
  #levels: readonly (readonly [Level, number])[] = [];
  #counters = new Map<Count, number>();
  #lookedMs: number;
  #timer: NodeJS.Timeout | undefined;

  constructor(parts: Recorded, windowMs: number, { now = nowMs, machine }: RecorderParts = {}) {
    this.#parts = parts;
    this.#windowMs = windowMs;
    this.#now = now;
    this.#lookedMs = now();
    this.#history = new History(windowMs, this.#lookedMs);
    this.#machine = machine ?? new ProcessMachine(windowMs, this.#history.sliceMs);
    for (const { name } of parts.gates) {
      this.#paces.set(name, new Pace(name, this.#lookedMs));
      this.#calls.set(name, new Map());
    }
    this.#listen();
    this.#look();
  }

  /** The window that ends now. */
  report(): Report {
    this.#look();
    const now = this.#now();
    this.#machine.read(this.#history, now);
    const span = this.#history.span(now);
    const levels = new Map(this.#levels);
    const { limiter, pool, gates } = this.#parts;
    return {
      windowMs: Math.min(span.ms, this.#windowMs),
      average: (level) => (span.ms > 0 ? span.sum(level) / span.ms : (levels.get(level) ?? 0)),
      count: (count) => Math.round(span.sum(count)),
      pace: (gate) => this.#paces.get(gate)?.judge(span),
      machine: this.#machine.figures(span),
      limiter: { ...limiter.stats(), name: limiter.name },
      pool: { ...pool.stats(), name: pool.name },
      gates: gateFigures(gates),
    };
  }

  /** Ends the recording; what was recorded stays. */
  stop(): void {
    clearTimeout(this.#timer);
    for (const remove of this.#removers.splice(0)) remove();
    this.#machine.stop();
  }

  #listen(): void {
    const { hooks, pool, gates } = this.#parts;
    for (const event of [
      'request:queued',
      'request:started',
      'request:finished',
      'request:rejected',
    ] as const) {
      this.#on(hooks, event, () => this.#stir());
    }
    const ofPool = ({ source }: { readonly source: string }): boolean => source === pool.name;
    this.#on(pool.hooks, 'instance:created', (told) => {
      if (!ofPool(told)) return;
      this.#count('created');
      this.#count('create.ms', told.createMs);
    });
    this.#on(pool.hooks, 'instance:createFailed', (told) => {
      if (ofPool(told)) this.#count('create-failed');
    });
    for (const theirs of new Set(gates.map((gate) => gate.hooks ?? hooks))) {
      this.#on(theirs, 'call:started', (told) => this.#callStarted(told));
      this.#on(theirs, 'call:retried', (told) => this.#callRetried(told));
      this.#on(theirs, 'call:throttled', () => this.#stir());
      this.#on(theirs, 'call:finished', (told) => this.#callFinished(told));
    }
  }

  #on<E extends LifecycleEventName>(hooks: LifecycleHooks, event: E, listener: LifecycleListener<E>): void {
    hooks.on(event, listener);
    this.#removers.push(() => hooks.off(event, listener));
  }

  #count(name: Count, amount = 1): void {
    this.#stir();
    this.#history.add(name, amount);
  }

  #callStarted({ source, callId, attempt }: LifecycleEvents['call:started']): void {
    this.#stir();
    const calls = this.#calls.get(source);
    if (calls === undefined || attempt > 1 || calls.size >= MOST_CALLS) return;
    calls.set(callId, calls.size + 1);
  }

  #callRetried(told: LifecycleEvents['call:retried']): void {
    if (told.status === 429 || told.class === 'other-key') this.#count(`${told.source}:refused`);
    else if (told.class === 'wait') this.#count(`${told.source}:failed`);
  }

  #callFinished(told: LifecycleEvents['call:finished']): void {
    this.#stir();
    const { source, outcome } = told;
    const inFlight = this.#calls.get(source)?.get(told.callId);
    this.#calls.get(source)?.delete(told.callId);
    if (outcome === 'other-key') this.#count(`${source}:refused`);
    else if (outcome === 'wait' || outcome === 'timeout') this.#count(`${source}:failed`);
    // Only what one attempt answered tells how long the service takes.
    else if (outcome === 'ok' && told.attempts === 1 && inFlight !== undefined) {
      this.#paces.get(source)?.note(this.#history, told.durationMs - told.waitMs, inFlight, this.#now());
    }
  }

  /** Something happened: looks now, and once more when the burst that it may belong to is over. */
  #stir(): void {
    if (this.#timer !== undefined) return;
    this.#look();
    NEUTRAL_CONTEXT.run(() => {
      this.#timer = setTimeout(() => {
        this.#timer = undefined;
        this.#look();
      }, LOOK_EVERY_MS);
    });
  }

  /** Adds up what was since the last look, and sees what is now. */
  #look(): void {
    const now = this.#now();
    const history = this.#history;
    // A pause stands between two marks, so that its beginning is not taken for a part of it.
    if (now - this.#lookedMs > history.sliceMs) history.mark(this.#lookedMs);
    for (const [level, value] of this.#levels) history.add(level, value * (now - this.#lookedMs));
    this.#lookedMs = now;
    this.#see();
    if (!history.isDue(now)) return;
    this.#machine.read(history, now);
    history.mark(now);
  }

  #see(): void {
    const gates = gateFigures(this.#parts.gates);
    this.#levels = [
      ...requestLevels(this.#parts.limiter.stats(), this.#parts.pool.stats()),
      ...gates.flatMap(gateLevels),
    ];
    for (const { name, attempts, calls, cache } of gates) {
      this.#countTo(`${name}:attempts`, attempts);
      this.#countTo(`${name}:calls`, calls);
      this.#countTo(`${name}:cached`, cache.hits + cache.shared);
    }
  }

  /** Counts what a running total has grown by. */
  #countTo(name: Count, total: number): void {
    this.#history.add(name, total - (this.#counters.get(name) ?? total));
    this.#counters.set(name, total);
  }
}

/**
 * What the requests that wait are waiting for. Instances come first: whoever waits for one while slots are free waits
 * for it to be made or made ready. Of those who wait to be admitted, all wait for the limiter as long as a slot is free
 * that nobody waits for; and if none is, they too wait for an instance, and a higher limit would not help them.
 */
function requestLevels(limiter: LimiterStats, pool: PoolStats): readonly (readonly [Level, number])[] {
  const free = Math.max(0, pool.size - pool.leased);
  const comingSoon = Math.min(pool.waiting, free);
  const beingReadied = pool.readying + pool.resetting;
  const readying = beingReadied === 0 ? 0 : (comingSoon * beingReadied) / (beingReadied + pool.creating);
  const unadmitted = limiter.paused || free > comingSoon ? limiter.queued : 0;
  return [
    ['requests', limiter.queued + pool.waiting + pool.leased],
    ['leased', pool.leased],
    ['creating', comingSoon - readying],
    ['readying', readying],
    ['admission-paused', limiter.paused ? unadmitted : 0],
    ['admission-short', limiter.paused ? 0 : unadmitted],
    ['pool-short', limiter.queued + pool.waiting - comingSoon - unadmitted],
  ];
}

/** What the calls of a gate are doing. */
function gateLevels(gate: GateStats): readonly (readonly [Level, number])[] {
  const { name, limiter, waitingForStart, backingOff } = gate;
  const queued = limiter?.queued ?? 0;
  const resting = isCoolingDown(gate) || limiter?.paused === true;
  // While some stand at the turnstile with their permits, it is there that those behind them are held up.
  const held = waitingForStart > 0 || resting;
  const atTurnstile = waitingForStart + (held ? queued : 0);
  const easing = gate.keys.every(({ state }) => state !== 'ready');
  return [
    [`${name}:running`, gate.running],
    [`${name}:at-bound`, held ? 0 : queued],
    [`${name}:in-window`, resting || easing ? 0 : atTurnstile],
    [`${name}:in-cooldown`, (resting || easing ? atTurnstile : 0) + (resting ? backingOff : 0)],
    [`${name}:in-backoff`, resting ? 0 : backingOff],
  ];
}
