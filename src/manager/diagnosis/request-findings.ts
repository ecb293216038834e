import { CONFIG_VARIABLES } from '../config.js';
import { counted, type Finding, percent, rounded, shownMs, WORTH_A_WORD } from './finding.js';
import type { Level, Report } from './recorder.js';

/** Fewer waiting requests on average are a moment's, and not worth a word. */
const A_FEW = 0.05;
const FAILED_CREATIONS = 3;

/** What keeps requests from beginning, as limiter and pool show it. */
export function requestFindings(report: Report): Finding[] {
  return [
    creationFailing(report) ?? creationSlow(report),
    preparationSlow(report),
    admissionPaused(report),
    admissionTooSmall(report),
    poolTooSmall(report),
  ].filter((finding) => finding !== undefined);
}

/** How many requests are at it on average, and the share of all requests' time, where that is worth a word. */
function lostTo(
  report: Report,
  level: Level,
): { readonly waiting: number; readonly share: number } | undefined {
  const waiting = report.average(level);
  const share = waiting / report.average('requests');
  return waiting >= A_FEW && share >= WORTH_A_WORD ? { waiting: rounded(waiting), share } : undefined;
}

function creationFailing(report: Report): Finding | undefined {
  const failed = report.count('create-failed');
  const created = report.count('created');
  if (failed < FAILED_CREATIONS || failed < created) return undefined;
  return {
    code: 'creation-failing',
    source: report.pool.name,
    share: lostTo(report, 'creating')?.share ?? 0,
    message: `${failed} of ${counted(failed + created, 'creation')} of an instance failed`,
    evidence: { failed, created, live: report.pool.live },
    remedy:
      'Look at the error: it is the `cause` of the `CreateError` that a request got, and the `error` of the event `instance:createFailed`, which `logTo` writes.',
  };
}

function creationSlow(report: Report): Finding | undefined {
  const lost = lostTo(report, 'creating');
  if (lost === undefined) return undefined;
  const created = report.count('created');
  const createMs = created === 0 ? undefined : Math.round(report.count('create.ms') / created);
  const took = createMs === undefined ? '' : `, which takes ${shownMs(createMs)}`;
  return {
    code: 'creation-slow',
    source: report.pool.name,
    share: lost.share,
    message: `Requests spend ${percent(lost.share)} of their time waiting for an instance to be made${took}`,
    evidence: {
      waiting: lost.waiting,
      created,
      ...(createMs === undefined ? {} : { createMs }),
      creating: report.pool.creating,
      min: report.pool.min,
      poolSize: report.pool.size,
    },
    remedy: `Have instances ready before requests come: \`min: ${report.pool.size}\` and \`await manager.start()\`, and a longer \`idleTimeoutMs\`, so that they are not let go between bursts. Then make \`create\` cheaper: start sandboxes from a template, or only when a task first needs one.`,
  };
}

function preparationSlow(report: Report): Finding | undefined {
  const lost = lostTo(report, 'readying');
  if (lost === undefined) return undefined;
  return {
    code: 'preparation-slow',
    source: report.pool.name,
    share: lost.share,
    message: `Requests spend ${percent(lost.share)} of their time waiting for instances being validated, prepared or reset`,
    evidence: {
      waiting: lost.waiting,
      readying: report.pool.readying,
      resetting: report.pool.resetting,
      poolSize: report.pool.size,
    },
    remedy:
      'Look at what `validate`, `prepare` and `reset` wait for. Do in `create` what is the same for every task, and start what a task may need, a sandbox or a browser, when it first asks for it (a tool of scope `task`).',
  };
}

function admissionPaused(report: Report): Finding | undefined {
  const lost = lostTo(report, 'admission-paused');
  if (lost === undefined) return undefined;
  return {
    code: 'admission-paused',
    source: report.limiter.name,
    share: lost.share,
    message: `The limiter is or was paused, and requests spent ${percent(lost.share)} of their time behind it`,
    evidence: { waiting: lost.waiting, maxConcurrent: report.limiter.maxConcurrent },
    remedy: 'Call `limiter.resume()`, or find out what paused it.',
  };
}

function admissionTooSmall(report: Report): Finding | undefined {
  const lost = lostTo(report, 'admission-short');
  if (lost === undefined) return undefined;
  const { maxConcurrent, name } = report.limiter;
  const leased = rounded(report.average('leased'));
  const { size } = report.pool;
  return {
    code: 'admission-too-small',
    source: name,
    share: lost.share,
    message: `Requests spend ${percent(lost.share)} of their time waiting to be admitted, while ${leased} of ${counted(size, 'instance')} are in use`,
    evidence: { waiting: lost.waiting, maxConcurrent, leased, poolSize: size },
    remedy: `Raise \`${CONFIG_VARIABLES.maxConcurrentRequests}\` from ${maxConcurrent} to ${Math.max(size, maxConcurrent + 1)} or more: one for each instance, and a few that stand ready for the next to come free.`,
  };
}

function poolTooSmall(report: Report): Finding | undefined {
  const lost = lostTo(report, 'pool-short');
  if (lost === undefined) return undefined;
  const { size, name } = report.pool;
  const leased = rounded(report.average('leased'));
  const wanted = Math.max(size + 1, Math.ceil(leased + lost.waiting));
  const { cpuShare } = report.machine;
  return {
    code: 'pool-too-small',
    source: name,
    share: lost.share,
    message: `Every instance is in use, and requests spend ${percent(lost.share)} of their time waiting for one: ${lost.waiting} wait on average for ${counted(size, 'instance')}`,
    evidence: { waiting: lost.waiting, leased, poolSize: size, cpuShare: rounded(cpuShare, 2) },
    remedy: `Raise \`${CONFIG_VARIABLES.poolSize}\` from ${size} towards ${wanted}, as far as memory and cores allow (\`checkConfig\` tells), and \`${CONFIG_VARIABLES.maxConcurrentRequests}\` with it. Where they do not, run more machines, or bound the queue (\`${CONFIG_VARIABLES.maxQueue}\`) so that clients are told to come back.`,
  };
}
