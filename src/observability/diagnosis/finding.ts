import { escapeControls } from '../../internal/format.js';

/**
 * What `diagnose` can find. Minor versions may add codes; none is renamed or removed.
 *
 * - `event-loop-blocked`: long-running JavaScript, or too little CPU.
 * - `memory-short`: the heap or the process is close to its limit.
 * - `no-keys`: every API key of a service is unauthorized or exhausted.
 * - `limits-unavailable`: the server of limits that several processes share cannot be reached, or has lost its data.
 * - `limits-mismatched`: processes were started with different values of a limit that they share.
 * - `permits-lost`: this process has lost permits of a shared limit while it held them.
 * - `creation-failing`: instances cannot be created.
 * - `service-failing`: a service responds with errors, or not in time.
 * - `cooldown`: a service rejects calls as too many, and its keys are in cooldown.
 * - `rate-window`: calls wait for capacity in a rate window.
 * - `service-at-limit`: a service gets more concurrent calls than it can serve.
 * - `service-slower`: a service takes longer than before at the same concurrency.
 * - `budget-exceeded`: calls are rejected because the budgets of their requests have no room.
 * - `budget-nearly-spent`: half of the requests or more have used nearly all that their budgets allow.
 * - `budget-unmetered`: a gate spends nothing from a meter of the budgets that its calls run under.
 * - `creation-slow`: requests wait for instances being created.
 * - `preparation-slow`: requests wait for instances being validated, prepared or reset.
 * - `fleet-at-limit`: calls or requests wait for a permit of a limit that several processes share, and others hold the rest.
 * - `admission-paused`, `admission-too-small`: requests wait to be admitted while instances are free.
 * - `tenant-capped`: requests wait for room under the caps of their tenants while permits are free.
 * - `tenant-starved`: a tenant waits while others that have more than it go before it again and again.
 * - `guarantees-too-large`: the same, because the guarantees of others leave nothing.
 * - `pool-too-small`: requests wait because every instance is in use.
 */
export type FindingCode =
  | 'event-loop-blocked'
  | 'memory-short'
  | 'no-keys'
  | 'limits-unavailable'
  | 'limits-mismatched'
  | 'permits-lost'
  | 'fleet-at-limit'
  | 'creation-failing'
  | 'service-failing'
  | 'cooldown'
  | 'rate-window'
  | 'service-at-limit'
  | 'service-slower'
  | 'budget-exceeded'
  | 'budget-nearly-spent'
  | 'budget-unmetered'
  | 'creation-slow'
  | 'preparation-slow'
  | 'admission-paused'
  | 'admission-too-small'
  | 'tenant-capped'
  | 'tenant-starved'
  | 'guarantees-too-large'
  | 'pool-too-small';

/** One cause of delay or failure. */
export interface Finding {
  readonly code: FindingCode;
  /** Where: the name of the pool, the limiter or a gate, or `process`. */
  readonly source: string;
  /** Whose requests wait, where it is those of one tenant. */
  readonly tenant?: string;
  /** The share of the requests' time that it costs, from 0 to 1; 0 for what makes calls fail at once. */
  readonly share: number;
  /** The finding in one sentence. */
  readonly message: string;
  /** The numbers behind it; durations in milliseconds. */
  readonly evidence: Readonly<Record<string, number>>;
  /** What to change. */
  readonly remedy: string;
}

/** A cause that costs a smaller share of the requests' time is not reported. */
export const MIN_SHARE = 0.1;

export const percent = (share: number): string => `${Math.round(100 * share)} %`;
export const rounded = (value: number, digits = 1): number => Number(value.toFixed(digits));
export const shownMs = (ms: number): string =>
  ms < 10_000 ? `${Math.round(ms)} ms` : `${rounded(ms / 1000)} s`;
export const counted = (n: number, one: string, several = `${one}s`): string =>
  `${n} ${n === 1 ? one : several}`;
/** A name from outside in a sentence. */
export const shownName = (name: string): string => escapeControls(name).slice(0, 100);
