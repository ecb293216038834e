import { escapeControls } from '../../internal/format.js';

/** What `diagnose` can find; docs/operations.md lists the meanings. Minor versions may add codes; none is renamed or removed. */
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
