import type { GateStats } from '../../gate/service-gate.js';
import { isWithoutKeys } from '../../manager/health.js';
import { fleetFiguresOf } from '../fleet-figures.js';
import { counted, type Finding, MIN_SHARE, percent, rounded, shownMs } from './finding.js';
import { fleetEvidence, sharedWith } from './fleet-findings.js';
import type { PaceFinding } from './pace.js';
import type { Report } from './recorder.js';

/** A smaller share of rejected attempts is an occasional limit, not a finding. */
const REJECTED = 0.05;
const FAILED = 0.1;
const A_FEW = 3;

/** What kind of service a gate guards, as far as the remedy depends on it. */
type ServiceKind = 'llm' | 'sandbox' | 'service';

const LLM = /llm|gpt|openai|vllm|sglang|claude|anthropic|gemini|mistral|qwen|deepseek|llama|model|chat/i;
const SANDBOX = /sandbox|e2b|daytona|modal|jupyter|code-?(run|interpret|exec)/i;

/** Guessed from the gate's name. A wrong guess only makes one sentence of the remedy fit badly. */
export function kindOf(gate: string): ServiceKind {
  if (SANDBOX.test(gate)) return 'sandbox';
  return LLM.test(gate) ? 'llm' : 'service';
}

/** What the gates show about their services. */
export function gateFindings(report: Report): Finding[] {
  return report.gates.flatMap((gate) =>
    [
      withoutKeys(gate),
      failing(report, gate),
      cooldown(report, gate),
      rateWindow(report, gate),
      atLimit(report, gate),
      slower(report, gate),
    ].filter((finding) => finding !== undefined),
  );
}

/** The share of the running time of requests in which this many of their calls are delayed, on average. */
function shareOf(report: Report, calls: number): number {
  const leased = report.average('leased');
  if (leased > 0) return Math.min(1, calls / leased);
  // A gate that serves no requests of this manager is measured by its own calls.
  const running = report.gates.reduce((sum, { name }) => sum + report.average(`${name}:running`), 0);
  return calls > 0 ? calls / (calls + running) : 0;
}

function withoutKeys(gate: GateStats): Finding | undefined {
  if (!isWithoutKeys(gate)) return undefined;
  const exhausted = gate.keys.filter(({ state }) => state === 'exhausted').length;
  const unauthorized = gate.keys.length - exhausted;
  return {
    code: 'no-keys',
    source: gate.name,
    // Its calls fail at once.
    share: 0,
    message: `No API key of ${gate.name} is usable: ${unauthorized} unauthorized, ${exhausted} exhausted`,
    evidence: { keys: gate.keys.length, unauthorized, exhausted },
    remedy:
      'Replace the unauthorized keys, top up the accounts of the exhausted ones, and call `gate.restoreKey(key)` or restart.',
  };
}

function failing(report: Report, { name }: GateStats): Finding | undefined {
  const failed = report.count(`${name}:failed`);
  const attempts = Math.max(failed, report.count(`${name}:attempts`));
  const share = shareOf(report, report.average(`${name}:in-backoff`));
  if (failed < A_FEW || (failed < FAILED * attempts && share < MIN_SHARE)) return undefined;
  return {
    code: 'service-failing',
    source: name,
    share,
    message: `${name} failed ${failed} of ${counted(attempts, 'attempt')}: server errors, broken connections or timeouts`,
    evidence: { failed, attempts, inBackoff: rounded(report.average(`${name}:in-backoff`)) },
    remedy: `Check ${name} itself: its status page or its server log. If its responses are only slow, raise \`attemptTimeoutMs\`. More retries would add to its load.`,
  };
}

function cooldown(report: Report, gate: GateStats): Finding | undefined {
  const { name } = gate;
  const rejected = report.count(`${name}:rejected`);
  const attempts = Math.max(rejected, report.count(`${name}:attempts`));
  const waiting = report.average(`${name}:in-cooldown`);
  const share = shareOf(report, waiting);
  if (rejected === 0 || ((rejected < A_FEW || rejected < REJECTED * attempts) && share < MIN_SHARE))
    return undefined;
  return {
    code: 'cooldown',
    source: name,
    share,
    message: `${name} rejected ${rejected} of ${counted(attempts, 'attempt')} as too many (429), and calls waited for its cooldowns for ${percent(share)} of the requests' time`,
    evidence: { rejected, attempts, queued: rounded(waiting), keys: gate.keys.length },
    remedy: `Configure what the plan of ${name} allows on its gate (\`rate\`, and \`sharedRate\` if all keys share an account), so that the limit is never exceeded. Then raise the limit: ${moreOf(report, gate)}.`,
  };
}

function rateWindow(report: Report, gate: GateStats): Finding | undefined {
  const { name } = gate;
  const waiting = report.average(`${name}:in-window`);
  const share = shareOf(report, waiting);
  if (share < MIN_SHARE) return undefined;
  return {
    code: 'rate-window',
    source: name,
    share,
    message: `Calls wait for capacity in the rate windows of ${name} for ${percent(share)} of the requests' time, ${rounded(waiting)} of them on average`,
    evidence: {
      queued: rounded(waiting),
      attempts: report.count(`${name}:attempts`),
      keys: gate.keys.length,
      cached: rounded(cachedShare(report, name), 2),
    },
    remedy: `The gate keeps within the limits configured for ${name}. Raise them: ${moreOf(report, gate)}.`,
  };
}

/** Ways to raise the limit of a service that counts calls. */
function moreOf(report: Report, { name, keys }: GateStats): string {
  if (kindOf(name) === 'sandbox') {
    return 'a plan with more sandboxes per second, or fewer sandboxes: one per task or instance instead of one per call';
  }
  if (kindOf(name) === 'llm') {
    return `a higher tier, more keys of other accounts (there ${keys.length === 1 ? 'is' : 'are'} ${keys.length}), or fewer and shorter prompts`;
  }
  const cached = percent(cachedShare(report, name));
  return `more keys (there ${keys.length === 1 ? 'is' : 'are'} ${keys.length}), a larger plan, or a \`cache\` that answers more of the calls (${cached} now)`;
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
  if (share < MIN_SHARE) return undefined;
  const bound = gate.limiter?.maxConcurrent;
  const fleet = fleetFiguresOf(name, gate);
  const others = pace === undefined || queued > inService ? sharedWith(fleet) : undefined;
  if (fleet !== undefined && others !== undefined) {
    return {
      code: 'fleet-at-limit',
      source: name,
      share,
      message: `${rounded(queued)} calls wait on average for a permit of the gate of ${name}, ${percent(share)} of the requests' time: ${others}`,
      evidence: {
        running: rounded(running),
        queued: rounded(queued),
        maxConcurrent: bound as number,
        ...fleetEvidence(fleet),
      },
      remedy: `${limitRemedy(name, undefined)} The limit holds for all processes together: raise it in each of them.`,
    };
  }
  return {
    code: 'service-at-limit',
    source: name,
    share,
    message:
      pace === undefined || queued > inService
        ? `${rounded(queued)} calls wait on average for one of the ${bound} permits of the gate of ${name}: ${percent(share)} of the requests' time`
        : `${name} is at its limit: a call takes ${shownMs(pace.callMs)} with about ${pace.inFlight} in flight, and ${shownMs(pace.bestMs)} with ${pace.inFlightAtBest}. That costs ${percent(share)} of the requests' time`,
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
      : ` Until then, more concurrent calls only queue inside it: set \`maxConcurrent: ${pace.inFlightAtBest}\` or \`adaptive\` on its gate.`;
  const raise = pace === undefined ? `, and \`maxConcurrent\` of its gate with it` : '';
  switch (kindOf(name)) {
    case 'llm':
      return `Let the server run more concurrently${raise}: vLLM \`--max-num-seqs\`, SGLang \`--max-running-requests\`; if the GPU is full, add replicas: SGLang \`--dp\`, vLLM \`--data-parallel-size\`.${fewer}`;
    case 'sandbox':
      return `Choose a plan with more concurrent sandboxes${raise}, or close each as soon as its code has run.${fewer}`;
    case 'service':
      return `Let ${name} serve more concurrently${raise}: a larger plan, or more machines behind it.${fewer}`;
  }
}

function slower(report: Report, { name }: GateStats): Finding | undefined {
  const pace = paceOf(report, name, 'slower');
  if (pace === undefined) return undefined;
  const running = report.average(`${name}:running`);
  const share = shareOf(report, running * (1 - pace.bestMs / pace.callMs));
  if (share < MIN_SHARE) return undefined;
  return {
    code: 'service-slower',
    source: name,
    share,
    message: `${name} takes ${shownMs(pace.callMs)} per call, and took ${shownMs(pace.bestMs)} before, with as many calls in flight (about ${pace.inFlight}). That costs ${percent(share)} of the requests' time`,
    evidence: { running: rounded(running), ...paceEvidence(pace) },
    remedy:
      kindOf(name) === 'llm'
        ? 'Check the server: whether others use it too (vLLM shows `num_requests_waiting`), whether it runs out of KV cache and preempts requests (`num_preemptions`), and whether prompts or responses have grown. More capacity: vLLM `--max-num-seqs` and `--gpu-memory-utilization`, or replicas: SGLang `--dp`, vLLM `--data-parallel-size`.'
        : `Check ${name}: its status page, and whether its inputs have grown.`,
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
