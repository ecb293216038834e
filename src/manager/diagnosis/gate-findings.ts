import type { GateStats } from '../../gate/service-gate.js';
import { isWithoutKeys } from '../gate-figures.js';
import { counted, type Finding, percent, rounded, shownMs, WORTH_A_WORD } from './finding.js';
import type { PaceFinding } from './pace.js';
import type { Report } from './recorder.js';
import { kindOf } from './service-kind.js';

/** One of so many attempts refused is a limit met now and then, not a trouble. */
const REFUSED = 0.05;
const FAILED = 0.1;
const A_FEW = 3;

/** What is wrong with the services behind the gates. */
export function gateFindings(report: Report): Finding[] {
  return report.gates.flatMap((gate) =>
    [
      withoutKeys(gate),
      failing(report, gate),
      throttled(report, gate),
      rateWindow(report, gate),
      atLimit(report, gate),
      slower(report, gate),
    ].filter((finding) => finding !== undefined),
  );
}

/** Of the time in which requests run, the share that so many of their calls are held up, on average. */
function shareOf(report: Report, calls: number): number {
  const leased = report.average('leased');
  if (leased > 0) return Math.min(1, calls / leased);
  // Gates that serve no requests of this manager are measured by their own calls.
  const running = report.gates.reduce((sum, { name }) => sum + report.average(`${name}:running`), 0);
  return calls > 0 ? calls / (calls + running) : 0;
}

function withoutKeys(gate: GateStats): Finding | undefined {
  if (!isWithoutKeys(gate)) return undefined;
  const spent = gate.keys.filter(({ state }) => state === 'spent').length;
  const refused = gate.keys.length - spent;
  return {
    code: 'no-keys',
    source: gate.name,
    // Its calls fail at once.
    share: 0,
    message: `No key of ${gate.name} is left: ${refused} refused, ${spent} spent`,
    evidence: { keys: gate.keys.length, refused, spent },
    remedy:
      'Replace the refused keys, fill the accounts of the spent ones, and call `gate.restoreKey(key)` or restart.',
  };
}

function failing(report: Report, { name }: GateStats): Finding | undefined {
  const failed = report.count(`${name}:failed`);
  const attempts = Math.max(failed, report.count(`${name}:attempts`));
  const share = shareOf(report, report.average(`${name}:in-backoff`));
  if (failed < A_FEW || (failed < FAILED * attempts && share < WORTH_A_WORD)) return undefined;
  return {
    code: 'service-failing',
    source: name,
    share,
    message: `${name} failed ${failed} of ${counted(attempts, 'attempt')}: errors of the server, broken connections or timeouts`,
    evidence: { failed, attempts, inBackoff: rounded(report.average(`${name}:in-backoff`)) },
    remedy: `Look at ${name} itself: its status page or its server's log. If its answers are only slow, raise \`attemptTimeoutMs\`. More retries would add to its load.`,
  };
}

function throttled(report: Report, gate: GateStats): Finding | undefined {
  const { name } = gate;
  const refused = report.count(`${name}:refused`);
  const attempts = Math.max(refused, report.count(`${name}:attempts`));
  const waiting = report.average(`${name}:in-cooldown`);
  const share = shareOf(report, waiting);
  if (refused === 0 || ((refused < A_FEW || refused < REFUSED * attempts) && share < WORTH_A_WORD))
    return undefined;
  return {
    code: 'throttled',
    source: name,
    share,
    message: `${name} refused ${refused} of ${counted(attempts, 'attempt')} as too many (429), and calls waited out its cool-downs for ${percent(share)} of the requests' time`,
    evidence: { refused, attempts, waiting: rounded(waiting), keys: gate.keys.length },
    remedy: `Tell the gate of ${name} what the plan allows (\`rate\`, and \`sharedRate\` where all keys share an account), so that it is never asked for more. Then ask for more: ${moreOf(report, gate)}.`,
  };
}

function rateWindow(report: Report, gate: GateStats): Finding | undefined {
  const { name } = gate;
  const waiting = report.average(`${name}:in-window`);
  const share = shareOf(report, waiting);
  if (share < WORTH_A_WORD) return undefined;
  return {
    code: 'rate-window',
    source: name,
    share,
    message: `Calls wait for room in the rate windows of ${name} for ${percent(share)} of the requests' time, ${rounded(waiting)} of them on average`,
    evidence: {
      waiting: rounded(waiting),
      attempts: report.count(`${name}:attempts`),
      keys: gate.keys.length,
      cached: rounded(cachedShare(report, name), 2),
    },
    remedy: `The gate keeps to what it was told that ${name} allows. Ask for more: ${moreOf(report, gate)}.`,
  };
}

/** Ways to get more out of a service that counts calls. */
function moreOf(report: Report, { name, keys }: GateStats): string {
  if (kindOf(name) === 'sandbox') {
    return 'a plan with more sandboxes a second, or fewer of them: one for a whole task or instance, not for each call';
  }
  if (kindOf(name) === 'llm') {
    return `a higher tier, further keys of other accounts (there ${keys.length === 1 ? 'is' : 'are'} ${keys.length}), or fewer and shorter prompts`;
  }
  const cached = percent(cachedShare(report, name));
  return `further keys (there ${keys.length === 1 ? 'is' : 'are'} ${keys.length}), a larger plan, or a \`cache\` that answers more of the calls (${cached} now), so that the same question is asked once`;
}

function cachedShare(report: Report, name: string): number {
  const calls = report.count(`${name}:calls`);
  return calls === 0 ? 0 : report.count(`${name}:cached`) / calls;
}

function atLimit(report: Report, gate: GateStats): Finding | undefined {
  const { name } = gate;
  const queued = report.average(`${name}:at-bound`);
  const running = report.average(`${name}:running`);
  const pace = paceOf(report, name, 'at-limit');
  const inService = pace === undefined ? 0 : running * (1 - pace.bestMs / pace.callMs);
  const share = shareOf(report, queued + inService);
  if (share < WORTH_A_WORD) return undefined;
  const bound = gate.limiter?.maxConcurrent;
  return {
    code: 'service-at-limit',
    source: name,
    share,
    message:
      pace === undefined || queued > inService
        ? `${rounded(queued)} calls wait on average for one of the ${bound} that the gate of ${name} lets run at once: ${percent(share)} of the requests' time`
        : `${name} is at its limit: a call takes ${shownMs(pace.callMs)} with about ${pace.inFlight} at once, and ${shownMs(pace.bestMs)} with ${pace.inFlightAtBest}. That costs ${percent(share)} of the requests' time`,
    evidence: {
      running: rounded(running),
      queued: rounded(queued),
      ...(bound === undefined ? {} : { maxConcurrent: bound }),
      ...paceEvidence(pace),
    },
    remedy: limitRemedy(name, pace),
  };
}

function limitRemedy(name: string, pace: PaceFinding | undefined): string {
  const fewer =
    pace === undefined
      ? ''
      : ` Until then more calls at once only wait inside it: \`maxConcurrent: ${pace.inFlightAtBest}\` or \`adaptive\` on its gate keeps them in line.`;
  const raise = pace === undefined ? `, and \`maxConcurrent\` of its gate with it` : '';
  switch (kindOf(name)) {
    case 'llm':
      return `Let the server run more at once${raise}: vLLM \`--max-num-seqs\`, SGLang \`--max-running-requests\`; where the GPU is full, add replicas: SGLang \`--dp\`, vLLM \`--data-parallel-size\`.${fewer}`;
    case 'sandbox':
      return `Take a plan with more sandboxes at once${raise}, or give each back as soon as its code has run.${fewer}`;
    case 'service':
      return `Let ${name} serve more at once${raise}: a larger plan, or more machines behind it.${fewer}`;
  }
}

function slower(report: Report, { name }: GateStats): Finding | undefined {
  const pace = paceOf(report, name, 'slower');
  if (pace === undefined) return undefined;
  const running = report.average(`${name}:running`);
  const share = shareOf(report, running * (1 - pace.bestMs / pace.callMs));
  if (share < WORTH_A_WORD) return undefined;
  return {
    code: 'service-slower',
    source: name,
    share,
    message: `${name} takes ${shownMs(pace.callMs)} for a call, and took ${shownMs(pace.bestMs)} before, with as many calls at once (about ${pace.inFlight}). That costs ${percent(share)} of the requests' time`,
    evidence: { running: rounded(running), ...paceEvidence(pace) },
    remedy:
      kindOf(name) === 'llm'
        ? 'Look at the server: whether others use it too (vLLM shows `num_requests_waiting`), whether it runs out of KV cache and starts over (`num_preemptions`), and whether prompts or answers have grown. More room: vLLM `--max-num-seqs` and `--gpu-memory-utilization`, or replicas: SGLang `--dp`, vLLM `--data-parallel-size`.'
        : `Look at ${name}: its status page, and whether what it is asked for has grown.`,
  };
}

function paceOf(report: Report, name: string, kind: PaceFinding['kind']): PaceFinding | undefined {
  const pace = report.pace(name);
  return pace?.kind === kind ? pace : undefined;
}

function paceEvidence(pace: PaceFinding | undefined): Record<string, number> {
  if (pace === undefined) return {};
  return {
    callMs: Math.round(pace.callMs),
    bestMs: Math.round(pace.bestMs),
    inFlight: pace.inFlight,
    inFlightAtBest: pace.inFlightAtBest,
  };
}
