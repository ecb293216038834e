/**
 * What `diagnose` can find. New ones may be added in a minor version; none is renamed or removed.
 *
 * - `event-loop-blocked`: JavaScript that runs too long, or too little CPU.
 * - `memory-short`: the heap or the process is close to its limit.
 * - `no-keys`: every key of a service is refused or spent.
 * - `creation-failing`: instances cannot be made.
 * - `service-failing`: a service answers with errors, or not in time.
 * - `throttled`: a service refuses calls because they are too many.
 * - `rate-window`: calls wait for room in a rate window.
 * - `service-at-limit`: a service has more calls at once than it serves at once.
 * - `service-slower`: a service takes longer for the same than it did.
 * - `creation-slow`: requests wait for instances being made.
 * - `preparation-slow`: requests wait for instances being validated, prepared or reset.
 * - `admission-paused`, `admission-too-small`: requests wait to be admitted while instances are free.
 * - `pool-too-small`: requests wait because every instance is in use.
 */
export type FindingCode =
  | 'event-loop-blocked'
  | 'memory-short'
  | 'no-keys'
  | 'creation-failing'
  | 'service-failing'
  | 'throttled'
  | 'rate-window'
  | 'service-at-limit'
  | 'service-slower'
  | 'creation-slow'
  | 'preparation-slow'
  | 'admission-paused'
  | 'admission-too-small'
  | 'pool-too-small';

/** One thing that holds requests up. */
export interface Finding {
  readonly code: FindingCode;
  /** The component it was found at: the pool, the limiter, a gate, or `process`. */
  readonly source: string;
  /** The share of the requests' time that is lost to it, from 0 to 1; what makes calls fail at once loses none. */
  readonly share: number;
  /** What was found, in words. */
  readonly message: string;
  /** The figures behind it; durations in milliseconds. */
  readonly evidence: Readonly<Record<string, number>>;
  /** What to change. */
  readonly remedy: string;
}

/** Losing less of the requests' time is not worth a word. */
export const WORTH_A_WORD = 0.1;

export const percent = (share: number): string => `${Math.round(100 * share)} %`;
export const rounded = (value: number, digits = 1): number => Number(value.toFixed(digits));
export const shownMs = (ms: number): string =>
  ms < 10_000 ? `${Math.round(ms)} ms` : `${rounded(ms / 1000)} s`;
export const counted = (n: number, one: string, several = `${one}s`): string =>
  `${n} ${n === 1 ? one : several}`;
