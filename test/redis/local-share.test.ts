import { LifecycleHooks } from 'pipeline-pool';
import { describe, expect, it } from 'vitest';
import type { TenantShare } from '../../src/queue/options.js';
import { tenantLimits, UNLIMITED, UNUSED } from '../../src/queue/options.js';
import { FleetPermit } from '../../src/redis/fleet-permit.js';
import { LocalShare } from '../../src/redis/local-share.js';
import { QueuePlaces } from '../../src/redis/queue-places.js';

const OWNER = {
  name: 'limit',
  checkLease: () => {},
  release: () => {},
  abandon: () => {},
  places: new QueuePlaces(new LifecycleHooks()),
  onAnswer: () => {},
};
let ids = 0;
interface Given {
  readonly tenant?: string;
  readonly share?: TenantShare;
  readonly priority?: number;
  readonly weight?: number;
  readonly sinceMs?: number;
}
const permitOf = ({ tenant, share, priority = 0, weight = 1, sinceMs = 0 }: Given = {}): FleetPermit =>
  new FleetPermit(OWNER, String(ids++), weight, '0', { tenant, priority }, sinceMs, {
    by: 'requests',
    ages: false,
    limits: share === undefined ? UNLIMITED : tenantLimits(share),
  });
const grantsOf = (share: LocalShare): FleetPermit[] => {
  const granted: FleetPermit[] = [];
  for (let next = share.next(); next !== undefined; next = share.next()) granted.push(next);
  return granted;
};
const FAIR = { fairBy: 'requests' } as const;

describe('the share of a member without Redis', () => {
  it('adds up to the limit, and to each cap, over all members', () => {
    for (const members of [1, 2, 3, 4, 7]) {
      let [all, capped] = [0, 0];
      for (let rank = 0; rank < members; rank++) {
        const share = new LocalShare(10, members, rank, FAIR);
        for (let i = 0; i < 10; i++) {
          share.add(permitOf({ tenant: 'a', share: { maxConcurrent: 5 } }));
          share.add(permitOf({ tenant: 'b' }));
        }
        const granted = grantsOf(share);
        all += granted.length;
        capped += granted.filter(({ tenant }) => tenant === 'a').length;
      }
      expect(all).toBe(10);
      expect(capped).toBeLessThanOrEqual(5);
      if (members < 4) expect(capped).toBe(5);
    }
  });

  it('is nothing for a member that the others may not know of', () => {
    const share = new LocalShare(10, 0, 0, FAIR);
    expect(share.keep(permitOf())).toBe(false);
    share.add(permitOf({ tenant: 'a', share: { guaranteed: 2 } }));
    expect(share.next()).toBeUndefined();
  });

  it('keeps of what is held no more than it has, nor than the cap of a tenant', () => {
    const share = new LocalShare(6, 2, 0, FAIR);
    const a = { tenant: 'a', share: { maxConcurrent: 2 } };
    expect([a, a, {}, {}, {}].map((given) => share.keep(permitOf(given)))).toEqual([
      true,
      false,
      true,
      true,
      false,
    ]);
  });

  it('serves in the order of a local limiter: guarantees, priority, tenants in turns', () => {
    const share = new LocalShare(4, 1, 0, FAIR);
    const kept = [0, 1, 2, 3].map(() => permitOf());
    for (const permit of kept) share.keep(permit);
    const order = [
      { tenant: 'a' },
      { tenant: 'a' },
      { tenant: 'b' },
      { tenant: 'c', priority: 1 },
      { tenant: 'd', priority: -1, share: { guaranteed: 1 } },
    ].map(permitOf);
    for (const permit of order) share.add(permit);
    expect(share.next()).toBeUndefined();
    for (const permit of kept) share.release(permit);
    const [a1, , b, c, d] = order;
    expect(grantsOf(share)).toEqual([d, c, a1, b]);
  });

  it('charges no tenant for a permit that was not used', () => {
    const share = new LocalShare(1, 1, 0, FAIR);
    const [used, unused, a, b] = ['b', 'a', 'a', 'b'].map((tenant) => permitOf({ tenant }));
    for (const permit of [used, unused, a, b] as FleetPermit[]) share.add(permit);
    const order: (FleetPermit | undefined)[] = [];
    for (let next = share.next(); next !== undefined; next = share.next()) {
      order.push(next);
      if (next === unused) next[UNUSED]();
      share.release(next);
    }
    expect(order).toEqual([used, unused, a, b]);
  });

  it('counts the age of a waiter from its arrival', () => {
    const share = new LocalShare(1, 1, 0, { agingMs: 100 });
    const [old, young] = [permitOf({ sinceMs: 0 }), permitOf({ priority: 1, sinceMs: 500 })];
    for (const permit of [young, old]) share.add(permit);
    expect(share.next()).toBe(old);
  });

  it('frees what is released, and the room under its cap, and forgets those that leave', () => {
    const share = new LocalShare(2, 1, 0, FAIR);
    const a = { tenant: 'a', share: { maxConcurrent: 1 } };
    const [first, second, third] = [permitOf(a), permitOf(a), permitOf(a)];
    for (const permit of [first, second, third]) share.add(permit);
    expect(grantsOf(share)).toEqual([first]);
    share.remove(second);
    share.release(first);
    expect(grantsOf(share)).toEqual([third]);
  });
});
