import { counted, type Finding, shownName } from './finding.js';
import type { Report } from './recorder.js';

/** A smaller share of rejected calls is that of a task that has ended. */
const REJECTED = 0.05;
/** One request that uses all it may is no finding: most of them are. */
const MOST = 0.5;
const A_FEW = 3;

/** What budgets reject, are about to, and do not see. */
export function budgetFindings(report: Report): Finding[] {
  const exceeded = report.gates.flatMap(({ name }) => overBudget(report, name) ?? []);
  const nearly = exceeded.length === 0 ? nearlySpent(report) : undefined;
  const unmetered = report.gates.flatMap(({ name }) => unmeteredBy(report, name) ?? []);
  return [...exceeded, ...(nearly === undefined ? [] : [nearly]), ...unmetered];
}

function overBudget(report: Report, name: string): Finding | undefined {
  const rejected = report.count(`${name}:over-budget`);
  const calls = Math.max(rejected, report.count(`${name}:calls`));
  const last = report.budgets.exceeded.get(name);
  if (last === undefined || rejected < A_FEW || rejected < REJECTED * calls) return undefined;
  const { limit, spent, reserved, wanted } = last;
  const meter = shownName(last.meter);
  const isHeldBack = wanted <= limit - spent;
  const why = isHeldBack ? `calls in flight have reserved ${figure(reserved)}` : `${figure(spent)} are spent`;
  return {
    code: 'budget-exceeded',
    source: name,
    // They fail at once.
    share: 0,
    message: `${rejected} of ${counted(calls, 'call')} of ${name} were rejected because the budgets of their requests have no room: of the ${figure(limit)} ${meter} of the last one, ${why}`,
    evidence: { rejected, calls, limit, spent, reserved, wanted },
    remedy: isHeldBack
      ? `Make \`cost.estimate\` of the gate of ${name} tighter, or let a task make fewer calls at once: what calls in flight may cost is reserved. Or raise the caps (\`budget\`).`
      : `Raise the cap of \`${meter}\` (\`budget\`), or let agents spend less. If they go on after the rejection, pass \`budget.signal\` on to them.`,
  };
}

/** Calls will be rejected soon. */
function nearlySpent(report: Report): Finding | undefined {
  const { requests, nearlySpent: nearly, last } = report.budgets;
  if (last === undefined || nearly < A_FEW || nearly < MOST * requests) return undefined;
  const { meter, limit, spent } = last;
  return {
    code: 'budget-nearly-spent',
    source: report.limiter.name,
    share: 0,
    message: `${nearly} of ${counted(requests, 'request')} have used 90 % or more of what their budgets allow: the last one ${figure(spent)} of ${figure(limit)} ${shownName(meter)}`,
    evidence: { requests, nearlySpent: nearly, limit, spent },
    remedy: `Raise the cap of \`${shownName(meter)}\` (\`budget\`) before calls are rejected, unless it is meant to end these tasks.`,
  };
}

function unmeteredBy(report: Report, name: string): Finding | undefined {
  const meters = report.budgets.unmetered.get(name);
  if (meters === undefined) return undefined;
  const names = meters.map(shownName).join(', ');
  return {
    code: 'budget-unmetered',
    source: name,
    share: 0,
    message: `Calls of ${name} run under budgets and spend nothing from their ${meters.length === 1 ? 'meter' : 'meters'} ${names}`,
    evidence: { meters: meters.length, calls: report.count(`${name}:calls`) },
    remedy: `Declare what they cost: \`cost.estimate\` and \`cost.actual\` of the gate of ${name}; 0 for a service that is free.`,
  };
}

const figure = (amount: number): string => String(Number(amount.toPrecision(6)));
