import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { FairQueue, type QueueNode, type QueuePosition } from '../../src/queue/fair-queue.js';
import type { FairnessOptions, TenantShare } from '../../src/queue/options.js';
import { seeded } from '../support/random-numbers.js';
import { sizeOf } from '../support/soak.js';

const RUNS = sizeOf('schedules of each fact of the fair queue', 10_000, 100_000);

class Request implements QueueNode {
  next: QueueNode | undefined;
  readonly position: QueuePosition = {};

  constructor(
    readonly id: number,
    readonly tenant: string,
    readonly weight: number,
    readonly priority: number,
    readonly arrivedMs: number,
    readonly holdMs: number,
  ) {}
}

/** A limit in plain code, around the queue: what holds a permit, until when, and on a clock that jumps. */
class Permits {
  nowMs = 0;
  active = 0;
  readonly queue: FairQueue<Request>;
  readonly held = new Map<Request, number>();
  readonly waiting = new Set<Request>();
  /** Permit-time received, by tenant. */
  readonly received = new Map<string, number>();
  onGrant: (request: Request) => void = () => {};
  #ids = 0;

  constructor(
    readonly limit: number,
    options: FairnessOptions,
  ) {
    this.queue = new FairQueue(options, () => this.nowMs);
  }

  ask(tenant: string, { weight = 1, priority = 0, holdMs = 1 } = {}): Request {
    const request = new Request(this.#ids++, tenant, weight, priority, this.nowMs, holdMs);
    this.queue.pushAt(request, priority, this.queue.tenant(tenant, weight));
    this.waiting.add(request);
    return request;
  }

  admit(): void {
    for (let next = this.queue.peek(); next !== undefined; next = this.queue.peek()) {
      if (this.active > 0 && this.active + next.weight > this.limit) return;
      this.onGrant(next);
      this.queue.take(next);
      this.waiting.delete(next);
      this.active += next.weight;
      this.held.set(next, this.nowMs);
    }
  }

  leave(request: Request): void {
    this.queue.remove(request);
    this.waiting.delete(request);
  }

  /** The next release happens, if it is due by then. */
  step(untilMs: number): boolean {
    let first: Request | undefined;
    let atMs = untilMs;
    for (const [request, sinceMs] of this.held) {
      if (sinceMs + request.holdMs >= atMs) continue;
      first = request;
      atMs = sinceMs + request.holdMs;
    }
    this.#pass(atMs);
    if (first === undefined) return false;
    this.held.delete(first);
    this.active -= first.weight;
    this.queue.settle(first.position, first.weight);
    return true;
  }

  heldBy(tenant: string): number {
    let weight = 0;
    for (const request of this.held.keys()) if (request.tenant === tenant) weight += request.weight;
    return weight;
  }

  #pass(toMs: number): void {
    for (const { tenant, weight } of this.held.keys()) {
      this.received.set(tenant, (this.received.get(tenant) ?? 0) + weight * (toMs - this.nowMs));
    }
    this.nowMs = toMs;
  }
}

const seed = fc.nat();

/** Vitest's `expect` would take most of the time of these tests. */
function ensure(holds: boolean, figures: unknown): asserts holds {
  if (!holds) throw new Error(JSON.stringify(figures));
}

describe('Fair queueing, in random schedules', () => {
  it('lets two backlogged tenants differ in work received by at most 2 × the largest call × permits', () => {
    const property = fc.property(seed, fc.integer({ min: 1, max: 8 }), (seed, limit) => {
      const random = seeded(seed);
      const upTo = (most: number) => 1 + Math.floor(random() * most);
      const longest = { a: upTo(60), b: upTo(60), c: upTo(60) };
      const heaviest = upTo(Math.min(3, limit));
      const shares = { a: random() < 0.5 ? 1 : upTo(4), b: random() < 0.5 ? 1 : upTo(4), c: 1 };
      const permits = new Permits(limit, { tenants: (name) => ({ weight: shares[name as 'a'] }) });
      const ask = (tenant: 'a' | 'b' | 'c') =>
        permits.ask(tenant, { weight: upTo(heaviest), holdMs: random() * longest[tenant] });
      const backlog = () => {
        for (const tenant of ['a', 'b'] as const)
          for (let own = [...permits.waiting].filter((one) => one.tenant === tenant).length; own < 3; own++)
            ask(tenant);
      };
      const largest = heaviest * Math.max(longest.a, longest.b, longest.c);
      // Before both are backlogged, anything may have happened.
      for (let i = upTo(30); i > 0; i--) {
        ask(random() < 0.7 ? 'a' : 'c');
        permits.admit();
        if (random() < 0.5) permits.step(permits.nowMs + random() * 30);
      }
      backlog();
      permits.admit();
      const before = new Map(permits.received);
      const workOf = (tenant: 'a' | 'b') =>
        ((permits.received.get(tenant) ?? 0) - (before.get(tenant) ?? 0)) / shares[tenant];
      for (let i = 0; i < 60; i++) {
        backlog();
        if (random() < 0.2) ask('c');
        permits.admit();
        permits.step(permits.nowMs + random() * 50);
        permits.admit();
        const difference = Math.abs(workOf('a') - workOf('b'));
        const most = (2 * largest * limit) / Math.min(shares.a, shares.b);
        ensure(difference <= most, { difference, most });
      }
    });
    fc.assert(property, { numRuns: RUNS });
  });

  it('serves tenants below their guarantee first, and lets none exceed a cap or wait behind one', () => {
    const property = fc.property(seed, fc.integer({ min: 1, max: 6 }), (seed, limit) => {
      const random = seeded(seed);
      const upTo = (most: number) => 1 + Math.floor(random() * most);
      const names = ['a', 'b', 'c', 'd'];
      const shares = new Map<string, Required<TenantShare>>();
      for (const name of names) {
        const maxConcurrent = random() < 0.5 ? upTo(4) : 100;
        const guaranteed = random() < 0.4 ? Math.min(maxConcurrent, upTo(2)) : 0;
        shares.set(name, { weight: 1, maxConcurrent, guaranteed });
      }
      const shareOf = (name: string) => shares.get(name) as Required<TenantShare>;
      const agingMs = random() < 0.5 ? undefined : upTo(20);
      const permits = new Permits(limit, { tenants: shareOf, agingMs });
      const fits = ({ tenant, weight }: Request) =>
        permits.heldBy(tenant) + weight <= shareOf(tenant).maxConcurrent;
      /** The first of a tenant, which its other requests do not pass. */
      const isFirst = (one: Request) =>
        ![...permits.waiting].some(
          (other) =>
            other.tenant === one.tenant &&
            (other.priority > one.priority || (other.priority === one.priority && other.id < one.id)),
        );
      permits.onGrant = (granted) => {
        ensure(fits(granted), granted.tenant);
        const isBelow = ({ tenant }: Request) => permits.heldBy(tenant) < shareOf(tenant).guaranteed;
        if (isBelow(granted)) return;
        for (const one of permits.waiting) if (isBelow(one)) ensure(!(isFirst(one) && fits(one)), one.tenant);
      };
      for (let i = 0; i < 60; i++) {
        const tenant = names[Math.floor(random() * names.length)] as string;
        const weight = Math.min(upTo(2), limit, shareOf(tenant).maxConcurrent);
        if (random() < 0.6) permits.ask(tenant, { weight, priority: upTo(3), holdMs: random() * 40 });
        const some = [...permits.waiting][upTo(5)];
        if (random() < 0.1 && some !== undefined) permits.leave(some);
        permits.admit();
        if (random() < 0.6) permits.step(permits.nowMs + random() * 20);
        permits.admit();
        const served = [...permits.waiting].filter((one) => isFirst(one) && fits(one));
        // With aging, one that is not the first of its tenant may be next.
        const next = agingMs === undefined ? served : [...permits.waiting].filter(fits);
        ensure(
          served.length === 0 || permits.active + Math.max(...next.map((one) => one.weight)) > limit,
          permits.active,
        );
        let excess = 0;
        for (const name of names) {
          const queued = [...permits.waiting].filter((one) => one.tenant === name).length;
          excess += Math.max(0, queued - Math.max(0, shareOf(name).maxConcurrent - permits.heldBy(name)));
        }
        ensure(permits.queue.excess === excess, permits.queue.excess);
      }
    });
    fc.assert(property, { numRuns: RUNS });
  });

  it('with agingMs, a waiter of priority p is passed by none of a higher priority P that came more than (P − p) × agingMs later', () => {
    const property = fc.property(seed, fc.integer({ min: 1, max: 3 }), (seed, limit) => {
      const random = seeded(seed);
      const upTo = (most: number) => 1 + Math.floor(random() * most);
      const agingMs = upTo(20);
      const tenants = random() < 0.5 ? ['a'] : ['a', 'b', 'c'];
      const permits = new Permits(limit, { agingMs });
      permits.onGrant = (granted) => {
        for (const one of permits.waiting) {
          if (one.priority >= granted.priority && tenants.length > 1) continue;
          const ahead = (granted.priority - one.priority) * agingMs;
          if (one !== granted && one.id < granted.id && ahead >= 0)
            ensure(granted.arrivedMs - one.arrivedMs <= ahead, [granted.arrivedMs, one.arrivedMs, ahead]);
        }
      };
      for (let i = 0; i < 80; i++) {
        const tenant = tenants[Math.floor(random() * tenants.length)] as string;
        if (random() < 0.6) permits.ask(tenant, { priority: upTo(4), holdMs: random() * 20 });
        const some = [...permits.waiting][upTo(5)];
        if (random() < 0.1 && some !== undefined) permits.leave(some);
        permits.admit();
        if (random() < 0.5) permits.step(permits.nowMs + random() * 10);
        permits.admit();
        ensure(permits.waiting.size === 0 || permits.active === limit, permits.active);
      }
      for (let left = permits.queue.size; left > 0; left--) {
        permits.step(permits.nowMs + 100);
        permits.admit();
      }
      expect(permits.queue.size).toBe(0);
    });
    fc.assert(property, { numRuns: RUNS });
  });

  it('delays the first request of a tenant by at most one grant for each other that waits, by requests, and by time where calls take as long as expected', () => {
    const property = fc.property(seed, fc.integer({ min: 1, max: 4 }), (seed, limit) => {
      const random = seeded(seed);
      const upTo = (most: number) => 1 + Math.floor(random() * most);
      const names = Array.from({ length: upTo(6) }, (_, i) => `t${i}`);
      const holds = new Map(names.map((name) => [name, upTo(50)]));
      const fairBy = random() < 0.5 ? 'time' : 'requests';
      const permits = new Permits(limit, { fairBy });
      // How long calls take is known once each tenant has made one.
      for (const [tenant, holdMs] of holds) {
        permits.ask(tenant, { holdMs });
        permits.admit();
        permits.step(permits.nowMs + 100);
      }
      for (let i = 0; i < 200; i++) {
        const tenant = names[Math.floor(random() * names.length)] as string;
        permits.ask(tenant, { holdMs: holds.get(tenant) as number });
      }
      permits.admit();
      for (let i = upTo(100); i > 0; i--) {
        permits.step(permits.nowMs + 100);
        permits.admit();
      }
      const others = new Set([...permits.waiting].map(({ tenant }) => tenant)).size;
      const first = permits.ask('newcomer');
      let grants = 0;
      permits.onGrant = () => grants++;
      while (permits.waiting.has(first)) {
        permits.step(permits.nowMs + 100);
        permits.admit();
      }
      ensure(grants - 1 <= others, { grants, others });
    });
    fc.assert(property, { numRuns: RUNS });
  });
});
