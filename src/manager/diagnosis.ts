import { type Finding, rounded } from './diagnosis/finding.js';
import { gateFindings } from './diagnosis/gate-findings.js';
import { machineFindings } from './diagnosis/machine-findings.js';
import type { Report } from './diagnosis/recorder.js';
import { requestFindings } from './diagnosis/request-findings.js';

export type { Finding, FindingCode } from './diagnosis/finding.js';
export type { DiagnosisOptions } from './diagnosis/recorder.js';

/** What holds a service's requests up at present. */
export interface Diagnosis {
  /** Whether nothing was found. */
  readonly healthy: boolean;
  /** What to change first; absent when nothing was found. */
  readonly bottleneck?: Finding;
  /** All that was found, what to change first in front. */
  readonly findings: readonly Finding[];
  /** Milliseconds that were looked back; less than the whole window as long as the recording is younger. */
  readonly windowMs: number;
}

/** From this share of the running time on, services that are waited for explain why instances are not given back. */
const EXPLAINS_QUEUES = 0.5;

/**
 * Names what holds requests up.
 *
 * Causes come before effects. A process that is short of CPU or memory makes everything else late, so it comes first,
 * and more instances or requests at once would make it worse. Then come what fails, and then what costs most of the
 * requests' time. A queue for instances is an effect as long as those who hold them spend most of their time waiting
 * for a service: then it is not named, since more instances would only wait for the same.
 */
export function diagnose(report: Report): Diagnosis {
  const machine = machineFindings(report);
  const loopIsLate = machine.some(({ code }) => code === 'event-loop-blocked');
  // How long a service takes is measured through the event loop.
  const services = gateFindings(report).filter(
    ({ code }) => !(loopIsLate && (code === 'service-at-limit' || code === 'service-slower')),
  );
  const waitedFor = services.reduce((sum, { share }) => sum + share, 0);
  const queuesAreEffects = machine.length > 0 || waitedFor >= EXPLAINS_QUEUES;
  const requests = requestFindings(report).filter(({ code }) => !(queuesAreEffects && isQueue(code)));
  const findings = [...machine, ...[...services, ...requests].sort(worstFirst)].map(shown);
  const [bottleneck] = findings;
  return {
    healthy: bottleneck === undefined,
    ...(bottleneck === undefined ? {} : { bottleneck }),
    findings,
    windowMs: Math.round(report.windowMs),
  };
}

const shown = (finding: Finding): Finding => ({ ...finding, share: rounded(finding.share, 2) });

const isQueue = (code: Finding['code']): boolean =>
  code === 'pool-too-small' || code === 'admission-too-small';

const isFailure = ({ code }: Finding): boolean =>
  code === 'no-keys' || code === 'creation-failing' || code === 'service-failing';

const worstFirst = (a: Finding, b: Finding): number =>
  Number(isFailure(b)) - Number(isFailure(a)) || b.share - a.share;
