import { budgetFindings } from './budget-findings.js';
import { type Finding, rounded } from './finding.js';
import { fleetFindings } from './fleet-findings.js';
import { gateFindings } from './gate-findings.js';
import { machineFindings } from './machine-findings.js';
import type { Report } from './recorder.js';
import { requestFindings } from './request-findings.js';

/** What delays a service's requests at present. */
export interface Diagnosis {
  /** Whether there are no findings. */
  readonly healthy: boolean;
  /** What to change first: the first finding. */
  readonly bottleneck?: Finding;
  /** All findings, the one to act on first in front. */
  readonly findings: readonly Finding[];
  /** Milliseconds that this covers: the recording's window, or its age if it is younger. */
  readonly windowMs: number;
}

/** If requests spend at least this share of their running time on slow services, those explain the queues. */
const EXPLAINS_QUEUES = 0.5;

/**
 * The findings of a report, causes before effects.
 *
 * A process that is short of CPU or memory makes everything else late, so it comes first, and more instances or requests
 * would make it worse. Then come failures, then what costs most of the requests' time. A queue for instances is an effect
 * as long as their holders spend most of their time waiting for a service: it is left out then, since more instances would
 * only wait for the same service.
 */
export function diagnosisOf(report: Report): Diagnosis {
  const machine = machineFindings(report);
  const loopIsLate = machine.some(({ code }) => code === 'event-loop-blocked');
  // Durations of calls are measured through the event loop.
  const services = gateFindings(report).filter(
    ({ code }) => !(loopIsLate && (code === 'service-at-limit' || code === 'service-slower')),
  );
  const waitedFor = services.reduce((sum, { share }) => sum + share, 0);
  const queuesAreEffects = machine.length > 0 || waitedFor >= EXPLAINS_QUEUES;
  const requests = requestFindings(report).filter(({ code }) => !(queuesAreEffects && isQueue(code)));
  const others = [...fleetFindings(report), ...services, ...budgetFindings(report), ...requests].sort(
    worstFirst,
  );
  const findings = [...machine, ...others].map((finding) => ({
    ...finding,
    share: rounded(finding.share, 2),
  }));
  const [bottleneck] = findings;
  return {
    healthy: bottleneck === undefined,
    ...(bottleneck === undefined ? {} : { bottleneck }),
    findings,
    windowMs: Math.round(report.windowMs),
  };
}

const isQueue = (code: Finding['code']): boolean =>
  code === 'pool-too-small' || code === 'admission-too-small' || code === 'fleet-at-limit';

const isFailure = ({ code }: Finding): boolean =>
  code === 'no-keys' ||
  code === 'limits-unavailable' ||
  code === 'permits-lost' ||
  code === 'creation-failing' ||
  code === 'service-failing';

const worstFirst = (a: Finding, b: Finding): number =>
  Number(isFailure(b)) - Number(isFailure(a)) || b.share - a.share;
