/**
 * The entry point `pipeline-pool/diagnosis`: names what delays the requests of a manager.
 *
 * - `diagnosis.ts` (here): `diagnose` and `recordDiagnosis`
 * - `findings.ts`: all findings of a report, in order
 * - `recorder.ts`: integrates the stats of limiter, pool and gates over time; one recorder per manager
 * - `history.ts`: sums and extremes over a sliding window
 * - `machine.ts`: event loop, CPU and memory of the process
 * - `pace.ts`: durations of a service's calls by concurrency
 * - `tenants.ts`, `budgets.ts`: what tenants wait for, and what budgets reject
 * - `machine-findings.ts`, `fleet-findings.ts`, `gate-findings.ts`, `budget-findings.ts`, `tenant-findings.ts`,
 *   `request-findings.ts`: from a report to findings
 * - `finding.ts`: the finding codes
 *
 * @module pipeline-pool/diagnosis
 */
import { options as checkOptions, durationMs } from '../../internal/validate.js';
import { type Diagnosis, diagnosisOf } from './findings.js';
import { type DiagnosedManager, recorderOf } from './recorder.js';

export type { Finding, FindingCode } from './finding.js';
export type { Diagnosis } from './findings.js';
export type { DiagnosedManager } from './recorder.js';

/** Options of `recordDiagnosis`. */
export interface DiagnosisOptions {
  /** Milliseconds that a diagnosis looks back; at least 1,000. @default 120_000 (two minutes) */
  readonly windowMs?: number | undefined;
}

const WINDOW_MS = 120_000;

/**
 * Names what delays the manager's requests at present, with the evidence and the remedy.
 *
 * It looks back two minutes, or as long as the recording is old. The recording starts with `recordDiagnosis`, or else with
 * the first call of `diagnose`: that call sees queues, keys and memory as they are, but no rates. Without either, nothing is
 * recorded and nothing is paid.
 *
 * @throws {TypeError} if `manager` is not a `PipelineManager`
 *
 * @example
 * const { bottleneck } = diagnose(manager);
 * if (bottleneck !== undefined) console.warn(`${bottleneck.message}. ${bottleneck.remedy}`);
 */
export function diagnose(manager: DiagnosedManager): Diagnosis {
  return diagnosisOf(recorderOf(manager, WINDOW_MS).report());
}

/**
 * Starts recording for `diagnose`, so that its first call has a past to look at: call it when the manager is created.
 * While a recording goes on, a further call does not change it. The recording ends when the pool is closed.
 *
 * @returns a function that ends the recording earlier
 * @throws {TypeError | RangeError} naming the option that is wrong, and its value
 *
 * @example
 * recordDiagnosis(manager, { windowMs: 300_000 });
 */
export function recordDiagnosis(manager: DiagnosedManager, options: DiagnosisOptions = {}): () => void {
  const { windowMs = WINDOW_MS } = checkOptions('recordDiagnosis', options, ['windowMs']);
  const recorder = recorderOf(manager, durationMs('windowMs', windowMs, 1_000), true);
  return () => recorder.stop();
}
