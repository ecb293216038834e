import { counted, type Finding, rounded, shownMs, shownName } from './finding.js';
import type { Report } from './recorder.js';
import type { TenantReport } from './tenants.js';

/** A tenant that has at most this part of what another one has, each by its weight, has less than its share. */
const BELOW = 0.5;
/** So many requests of each tenant that has more begin while one of a starved tenant waits. */
const ROUNDS = 10;
const MARGIN = 1.1;

type Words = Omit<Finding, 'code' | 'source' | 'share'>;

/** Whose cap holds requests back. */
export function tenantCapped(report: Report, time: string, queued: number): Words {
  const { capped } = report.tenants;
  const { maxConcurrent } = report.limiter;
  const evidence = { maxConcurrent, leased: rounded(report.average('leased')) };
  const remedy =
    'If that is not intended, raise `maxConcurrent` in what `tenants` returns for it. To keep room for others, `guaranteed` wastes none.';
  const waiting = (whose: string) =>
    `Requests spend ${time} waiting for room under the cap of ${whose}, ${queued} of them on average, while permits are free`;
  if (capped === undefined) return { message: waiting('their tenant'), evidence, remedy };
  const { cap, tenants } = capped;
  const tenant = shownName(capped.name);
  const others = tenants === 1 ? '' : ` (and of ${counted(tenants - 1, 'other')})`;
  return {
    tenant,
    message: `${waiting(`tenant ${tenant}${others}`)}: it may hold ${cap} of ${maxConcurrent}`,
    evidence: { ...evidence, cap, tenants },
    remedy,
  };
}

/**
 * A tenant that waits while others that have more than it, by their weights, go before it again and again; of several the
 * one with the most waiters. One that wants more than its share, or more than its cap, is not starved.
 */
export function tenantStarved(report: Report): Finding | undefined {
  const [starved, ...others] = report.tenants.all
    .filter((one) => isStarved(report, one))
    .sort((a, b) => b.waiting - a.waiting);
  if (starved === undefined) return undefined;
  const { guaranteed } = report.tenants;
  const { maxConcurrent, name: source } = report.limiter;
  const tenant = shownName(starved.name);
  const waitMs = meanWaitMs(report, starved);
  const takers = takersFrom(report, starved);
  const [most] = takers as [TenantReport];
  const ahead = Math.round(beganAhead(report, starved, takers));
  const and = others.length === 0 ? '' : ` (and of ${counted(others.length, 'other')})`;
  const waits = `Requests of tenant ${tenant}${and} wait ${shownMs(waitMs)}`;
  const found = {
    source,
    tenant,
    share: starved.waiting / Math.max(report.average('requests'), starved.waiting),
    evidence: {
      queued: rounded(starved.waiting),
      running: rounded(starved.running, 2),
      runningOfMost: rounded(most.running, 2),
      waitMs: Math.round(waitMs),
      beganAhead: ahead,
    },
  };
  if (takers.every((taker) => useBeyondGuarantee(taker) <= BELOW * useOf(taker)))
    return {
      ...found,
      code: 'guarantees-too-large',
      message: `${waits}, because ${guaranteed} of ${counted(maxConcurrent, 'permit')} are guaranteed to others that use them`,
      evidence: { ...found.evidence, guaranteed, maxConcurrent },
      remedy:
        'Lower `guaranteed` in what `tenants` returns, so that all guarantees together leave room for others: a tenant below its guarantee goes before every other tenant and priority. Or raise `maxConcurrent`.',
    };
  return {
    ...found,
    code: 'tenant-starved',
    message: `${waits}, while ${ahead} requests of others begin: ${rounded(starved.running)} of them run on average, and ${rounded(most.running)} of tenant ${shownName(most.name)}`,
    remedy: remedyFor(report, starved, most),
  };
}

function remedyFor({ tenants }: Report, starved: TenantReport, most: TenantReport): string {
  const age =
    'set or lower `agingMs`, so that a waiter counts as one priority higher for each `agingMs` waited, or give its requests a higher `priority`';
  if (tenants.isByTime || priorityOf(starved) < priorityOf(most))
    return `The requests of others have a higher priority: ${age}.`;
  return `Leave \`fairBy\` out: by \`time\`, the default, tenants share by how long they hold permits, and without it one with long requests gets as many times more. If the requests of others have a higher priority, ${age}.`;
}

function isStarved(report: Report, one: TenantReport): boolean {
  const { waiting, running, queued, tenant } = one;
  // Without the figures of the limiter nothing is known about shares and caps.
  if (tenant === undefined || queued === 0 || waiting === 0 || waiting < running) return false;
  if (tenant.excess > 0 || running > 0.9 * tenant.limits.maxConcurrent) return false;
  const takers = takersFrom(report, one);
  return takers.length > 0 && beganAhead(report, one, takers) >= ROUNDS * takers.length;
}

/** The tenants that get so much more than this one that they take from its share; the one that has most first. */
function takersFrom({ tenants, limiter }: Report, one: TenantReport): TenantReport[] {
  // What is guaranteed comes before shares, as long as that leaves something.
  const use = tenants.guaranteed >= limiter.maxConcurrent ? useOf : useBeyondGuarantee;
  return tenants.all
    .filter(
      (other) =>
        other !== one &&
        use(other) > 0 &&
        useOf(one) <= BELOW * use(other) &&
        // By time, it may have had its share: more at once than the window shows.
        !(tenants.isByTime && receivedBy(one) >= receivedBy(other)),
    )
    .sort((a, b) => useOf(b) - useOf(a));
}

/** What a tenant has, by its weight. */
const useOf = ({ running, tenant }: TenantReport): number => running / (tenant?.limits.weight ?? 1);

/** The same of what is clearly not guaranteed to it. */
function useBeyondGuarantee(one: TenantReport): number {
  const guaranteed = MARGIN * (one.tenant?.limits.guaranteed ?? 0);
  return useOf({ ...one, running: Math.max(0, one.running - guaranteed) });
}

const receivedBy = ({ tenant }: TenantReport): number => tenant?.received ?? 0;

const priorityOf = ({ tenant }: TenantReport): number => tenant?.top?.level.priority ?? 0;

/** Of its requests that began or wait now. */
const meanWaitMs = ({ windowMs }: Report, { waiting, started, queued }: TenantReport): number =>
  (waiting * windowMs) / Math.max(1, started + queued);

/** Requests of the others that begin while one of its requests waits. */
function beganAhead(report: Report, one: TenantReport, others: readonly TenantReport[]): number {
  const began = others.reduce((sum, { started }) => sum + started, 0);
  return (meanWaitMs(report, one) * began) / Math.max(1, report.windowMs);
}
