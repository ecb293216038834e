import { CONFIG_VARIABLES } from '../../manager/config.js';
import { type FleetFigures, fleetFiguresOf } from '../fleet-figures.js';
import { counted, type Finding, MIN_SHARE, percent, rounded, shownMs } from './finding.js';
import { fleetEvidence, sharedWith } from './fleet-findings.js';
import type { Level, Report } from './recorder.js';
import { tenantCapped, tenantStarved } from './tenant-findings.js';

/** Fewer waiting requests on average are not reported. */
const MIN_QUEUED = 0.05;
const FAILED_CREATIONS = 3;

/** What delays the start of requests, as limiter and pool show it. */
export function requestFindings(report: Report): Finding[] {
  const { pool, limiter } = report;
  const isShared = sharedWith(fleetFiguresOf(limiter.name, limiter)) !== undefined;
  return [
    creationFailing(report) ?? delay(report, 'creating', 'creation-slow', pool.name, creationSlow),
    delay(report, 'readying', 'preparation-slow', pool.name, preparationSlow),
    delay(report, 'admission-paused', 'admission-paused', limiter.name, admissionPaused),
    isShared
      ? delay(report, 'admission-short', 'fleet-at-limit', limiter.name, fleetAtLimit)
      : delay(report, 'admission-short', 'admission-too-small', limiter.name, admissionTooSmall),
    delay(report, 'tenant-capped', 'tenant-capped', limiter.name, tenantCapped),
    tenantStarved(report),
    delay(report, 'pool-short', 'pool-too-small', pool.name, poolTooSmall),
  ].filter((finding) => finding !== undefined);
}

/** The words of a finding. `queued`: requests that wait, on average. `time`: the share of their time, as text. */
type Words = (report: Report, time: string, queued: number) => Omit<Finding, 'code' | 'source' | 'share'>;

/** A finding if requests spend much of their time waiting for this. */
function delay(report: Report, level: Level, code: Finding['code'], source: string, words: Words) {
  const waiting = report.average(level);
  const share = waiting / report.average('requests');
  if (waiting < MIN_QUEUED || share < MIN_SHARE) return undefined;
  const queued = rounded(waiting);
  const found = words(report, `${percent(share)} of their time`, queued);
  return { code, source, share, ...found, evidence: { queued, ...found.evidence } };
}

function creationFailing(report: Report): Finding | undefined {
  const failed = report.count('create-failed');
  const created = report.count('created');
  if (failed < FAILED_CREATIONS || failed < created) return undefined;
  return {
    code: 'creation-failing',
    source: report.pool.name,
    share: delay(report, 'creating', 'creation-slow', report.pool.name, creationSlow)?.share ?? 0,
    message: `${failed} of ${counted(failed + created, 'creation')} of an instance failed`,
    evidence: { failed, created, live: report.pool.live },
    remedy:
      'Read the error: it is the `cause` of the `CreateError` that a request was rejected with, and the `error` of the event `instance:create-failed`, which `logTo` writes.',
  };
}

const creationSlow: Words = (report, time) => {
  const created = report.count('created');
  const createMs = created === 0 ? undefined : Math.round(report.count('create.ms') / created);
  const took = createMs === undefined ? '' : `, which takes ${shownMs(createMs)}`;
  return {
    message: `Requests spend ${time} waiting for an instance to be created${took}`,
    evidence: {
      created,
      ...(createMs === undefined ? {} : { createMs }),
      creating: report.pool.creating,
      min: report.pool.min,
      poolSize: report.pool.size,
    },
    remedy: `Create instances before requests arrive: \`min: ${report.pool.size}\` and \`await manager.warmUp()\`, and a longer \`idleTimeoutMs\`, so that they are not destroyed between bursts. Then make \`create\` cheaper: start sandboxes from a template, or only when a task first needs one.`,
  };
};

const preparationSlow: Words = (report, time) => {
  return {
    message: `Requests spend ${time} waiting for instances being validated, prepared or reset`,
    evidence: {
      readying: report.pool.readying,
      resetting: report.pool.resetting,
      poolSize: report.pool.size,
    },
    remedy:
      'Find out what `validate`, `prepare` and `reset` wait for. Do in `create` what is the same for every task, and start what a task may need, a sandbox or a browser, on first use (a tool of scope `task`).',
  };
};

const admissionPaused: Words = (report, time) => {
  return {
    message: `The limiter is or was paused, and requests spent ${time} behind it`,
    evidence: { maxConcurrent: report.limiter.maxConcurrent },
    remedy: 'Call `limiter.resume()`, or find out what paused it.',
  };
};

const admissionTooSmall: Words = (report, time) => {
  const { maxConcurrent } = report.limiter;
  const leased = rounded(report.average('leased'));
  const { size } = report.pool;
  return {
    message: `Requests spend ${time} waiting to be admitted, while ${leased} of ${counted(size, 'instance')} are in use`,
    evidence: { maxConcurrent, leased, poolSize: size },
    remedy: `Raise \`${CONFIG_VARIABLES.maxConcurrentRequests}\` from ${maxConcurrent} to ${Math.max(size, maxConcurrent + 1)} or more: one per instance, and a few that can start as soon as an instance is released.`,
  };
};

const fleetAtLimit: Words = (report, time) => {
  const { limiter, pool } = report;
  const fleet = fleetFiguresOf(limiter.name, limiter) as FleetFigures;
  return {
    message: `Requests spend ${time} waiting to be admitted: ${sharedWith(fleet)}, ${limiter.active} of them by this process`,
    evidence: {
      maxConcurrent: limiter.maxConcurrent,
      leased: rounded(report.average('leased')),
      poolSize: pool.size,
      ...fleetEvidence(fleet),
    },
    remedy: `Raise \`maxConcurrent\` of the limit in all processes, as far as what it protects allows, or set \`limiter.maxConcurrent\` in one, which applies to all. Otherwise bound the queue (\`maxQueue\` of the limiter) so that clients retry later.`,
  };
};

const poolTooSmall: Words = (report, time, queued) => {
  const { size } = report.pool;
  const leased = rounded(report.average('leased'));
  const wanted = Math.max(size + 1, Math.ceil(leased + queued));
  const { cpuShare } = report.machine;
  return {
    message: `Every instance is in use, and requests spend ${time} waiting for one: ${queued} wait on average for ${counted(size, 'instance')}`,
    evidence: { leased, poolSize: size, cpuShare: rounded(cpuShare, 2) },
    remedy: `Raise \`${CONFIG_VARIABLES.poolSize}\` from ${size} towards ${wanted}, as far as memory and cores allow (\`checkConfig\` warns), and \`${CONFIG_VARIABLES.maxConcurrentRequests}\` with it. Otherwise run more machines, or bound the queue (\`${CONFIG_VARIABLES.maxQueue}\`) so that clients retry later.`,
  };
};
