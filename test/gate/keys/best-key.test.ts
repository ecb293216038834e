import { afterEach, describe, expect, it, vi } from 'vitest';
import type { Classification } from '../../../src/gate/classify.js';
import { ApiKey, type KeyReservation } from '../../../src/gate/keys/api-key.js';
import { KeyRing } from '../../../src/gate/keys/key-ring.js';
import { SlidingWindow } from '../../../src/gate/keys/sliding-window.js';
import { LifecycleHooks } from '../../../src/hooks/lifecycle-hooks.js';
import { seeded } from '../../support/random-numbers.js';

afterEach(() => vi.restoreAllMocks());

const OK: Classification = {
  class: 'ok',
  status: undefined,
  retryAfterMs: undefined,
  retry: false,
  load: 'ok',
};
const COOLDOWN = { baseMs: 50, maxMs: 400, exhaustedMs: 300, quarantinedMs: 1_000 };
const ringOf = (limits: readonly number[], perMs: number, now: () => number) =>
  new KeyRing({
    name: 'search',
    hooks: new LifecycleHooks(),
    keys: limits.map((limit, i) => ({ key: `key-${i}`, rate: [{ limit, perMs }], hasOwnRate: true })),
    sharedRate: [],
    cooldown: COOLDOWN,
    keyed: true,
    now,
  });

describe('the choice of the best key', () => {
  it.each([1, 2, 3, 4, 5])('is that of a search through all keys, seed %i', (seed) => {
    const random = seeded(seed);
    const below = (n: number): number => Math.floor(random() * n);
    const PER_MS = 100;
    let now = 0;
    const limits = Array.from({ length: 13 }, () => 1 + below(5));
    const ring = ringOf(limits, PER_MS, () => now);
    // The same keys, with a list of what counts in the window of each.
    const keys = limits.map((limit, i) => ({
      limit,
      at: i,
      used: i,
      inUse: 0,
      began: [] as number[],
      open: 0,
    }));
    const freeOf = (key: (typeof keys)[number]) =>
      (key.limit - key.began.filter((ms) => ms + PER_MS > now).length - key.open) / key.limit;
    const live: KeyReservation[] = [];
    let starts = keys.length;
    for (let step = 0; step < 1_000; step++) {
      if (below(3) === 0) now += below(20);
      const reservation = live[below(live.length)];
      const key = keys[reservation?.key.index ?? 0]!;
      const what = reservation === undefined ? 0 : below(4);
      if (what < 2 || reservation === undefined) {
        const [best] = keys
          .filter((one) => freeOf(one) > 0)
          .sort((a, b) => freeOf(b) - freeOf(a) || a.inUse - b.inUse || a.used - b.used);
        const taken = ring.take(1, now);
        expect('key' in taken ? taken.key.index : undefined, `step ${step}`).toBe(best?.at);
        if (best === undefined || !('key' in taken)) continue;
        best.inUse++;
        best.open++;
        best.used = starts++;
        live.push(taken);
      } else if (what === 2) {
        if (reservation.beganMs !== undefined) continue;
        ring.begin(reservation, now);
        key.began.push(now);
        key.open--;
      } else {
        if (reservation.beganMs === undefined) key.open--;
        ring.end(reservation);
        key.inUse--;
        live.splice(live.indexOf(reservation), 1);
      }
    }
  });

  it('passes over a key in cooldown, and takes it again for one probe after it', () => {
    const ring = ringOf([5, 5], 1_000, () => 0);
    const take = (now: number) => ring.take(1, now) as KeyReservation;
    const first = take(0);
    ring.begin(first, 0);
    ring.report(first, { ...OK, class: 'rate-limited', retryAfterMs: 500 });
    ring.end(first);
    expect([take(1), take(2), take(499)].map(({ key }) => key.index)).toEqual([1, 1, 1]);
    expect([take(500), take(501), take(502)].map(({ key }) => key.index)).toEqual([0, 1, 1]);
  });

  it('says whether a window or the state of a key delays a start', () => {
    const ring = ringOf([1], 1_000, () => 0);
    const first = ring.take(1, 0) as KeyReservation;
    ring.begin(first, 0);
    expect(ring.take(1, 1)).toEqual({ retryAfterMs: 999, reason: 'rate' });
    ring.report(first, { ...OK, class: 'rate-limited', retryAfterMs: 2_000 });
    ring.end(first);
    expect(ring.take(1, 1_001)).toEqual({ retryAfterMs: 999, reason: 'cooldown' });
  });

  it('reads the windows of a few of 1,000 keys for a start', () => {
    let now = 0;
    const ring = ringOf(new Array<number>(1_000).fill(1_000), 1_000, () => now);
    const start = (): void => {
      const reservation = ring.take(1, ++now) as KeyReservation;
      ring.begin(reservation, now);
      ring.report(reservation, OK);
      ring.end(reservation);
      ring.retryAfterMs(now, 1);
    };
    for (let i = 0; i < 2_000; i++) start();
    const reads = [
      vi.spyOn(SlidingWindow.prototype, 'free'),
      vi.spyOn(SlidingWindow.prototype, 'waitMs'),
      vi.spyOn(ApiKey.prototype, 'cooldownMs'),
    ];
    for (let i = 0; i < 100; i++) start();
    expect(reads.reduce((sum, { mock }) => sum + mock.calls.length, 0)).toBeLessThan(100 * 10);
  });
});
