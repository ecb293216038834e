import { describe, expect, it, vi } from 'vitest';
import { LeaseRevokedError } from '../../src/errors.js';
import type { PipelinePoolOptions } from '../../src/pool/options.js';
import { PipelinePool } from '../../src/pool/pipeline-pool.js';
import { inVirtualTime } from '../support/fake-timers.js';
import { type Piece, Workshop } from '../support/pools.js';
import { deferred, endOfTurn, outcome } from '../support/promises.js';

inVirtualTime();

const poolOf = (more: Partial<PipelinePoolOptions<Piece>> = {}) => {
  const workshop = new Workshop();
  const pool = new PipelinePool({ size: 1, ...workshop.callbacks, ...more });
  const gone: [number, string][] = [];
  pool.hooks.on('instance:destroyed', ({ instanceId, reason }) => gone.push([instanceId, reason]));
  return { workshop, pool, gone };
};

/** Brings so many instances to life, and leaves them idle, the first one longest. */
async function fill(pool: PipelinePool<Piece>, count: number): Promise<void> {
  const leases = await Promise.all(Array.from({ length: count }, () => pool.acquire()));
  for (const lease of leases) {
    await lease.release();
    await vi.advanceTimersByTimeAsync(1);
  }
}

describe('an instance', () => {
  it('is destroyed after `maxUses` leases', async () => {
    const { pool, gone, workshop } = poolOf({ maxUses: 2 });
    for (let i = 0; i < 5; i++) await (await pool.acquire()).release();
    expect(gone).toEqual([
      [1, 'uses'],
      [2, 'uses'],
    ]);
    expect(workshop.peak).toBe(1);
  });

  it('is destroyed at `maxLifetimeMs`, up to a tenth earlier, when it is idle', async () => {
    const draw = vi.spyOn(Math, 'random').mockReturnValue(0.5);
    const { pool, gone } = poolOf({ maxLifetimeMs: 1_000 });
    await fill(pool, 1);
    await vi.advanceTimersByTimeAsync(948);
    expect(gone).toEqual([]);
    await vi.advanceTimersByTimeAsync(1);
    expect(gone).toEqual([[1, 'lifetime']]);
    draw.mockRestore();
  });

  it('is destroyed at the end of its lease when its lifetime ends during the lease', async () => {
    const { pool, gone } = poolOf({ maxLifetimeMs: 1_000 });
    const lease = await pool.acquire();
    await vi.advanceTimersByTimeAsync(5_000);
    expect(lease.pipeline.alive).toBe(true);
    expect(lease.signal.aborted).toBe(false);
    await lease.release();
    expect(gone).toEqual([[1, 'lifetime']]);
  });

  it('does not outlive its lifetime in the inventory', async () => {
    const { pool, gone } = poolOf({ size: 2, maxLifetimeMs: 60_000 });
    await fill(pool, 2);
    await vi.advanceTimersByTimeAsync(60_000);
    expect(gone.map(([, reason]) => reason)).toEqual(['lifetime', 'lifetime']);
    expect(pool.stats()).toMatchObject({ live: 0, idle: 0 });
  });

  it('is destroyed soon after it was idle for `idleTimeoutMs`', async () => {
    const { pool, gone } = poolOf({ size: 3, idleTimeoutMs: 10_000 });
    await fill(pool, 3);
    await vi.advanceTimersByTimeAsync(9_900);
    expect(gone).toEqual([]);
    await vi.advanceTimersByTimeAsync(5_000);
    expect(gone.map(([, reason]) => reason)).toEqual(['idle', 'idle', 'idle']);
  });

  it('stays, however idle, among the last `min`, and with an `idleTimeoutMs` of Infinity', async () => {
    const { pool, gone, workshop } = poolOf({ size: 3, min: 2, idleTimeoutMs: 20 });
    await fill(pool, 3);
    await vi.advanceTimersByTimeAsync(1_000);
    expect(gone).toHaveLength(1);
    expect(pool.stats().idle).toBe(2);
    expect(workshop.pieces).toHaveLength(3);
    await pool.close();
    const other = poolOf({ size: 3, idleTimeoutMs: Number.POSITIVE_INFINITY });
    await fill(other.pool, 3);
    await vi.advanceTimersByTimeAsync(1e9);
    expect(other.gone).toEqual([]);
  });

  it('keeps its idleness while others are in steady use', async () => {
    const { pool, gone } = poolOf({ size: 3, idleTimeoutMs: 10_000 });
    await fill(pool, 3);
    for (let i = 0; i < 300; i++) {
      await (await pool.acquire()).release();
      await vi.advanceTimersByTimeAsync(50);
    }
    // The one used last is leased again and again; the other two have gone.
    expect(gone.map(([instanceId]) => instanceId).sort()).toEqual([1, 2]);
    expect(pool.stats()).toMatchObject({ live: 1, idle: 1 });
  });
});

describe('refresh', () => {
  it('replaces idle instances now and leased ones when they are released', async () => {
    const { pool, gone } = poolOf({ size: 2 });
    await fill(pool, 2);
    const lease = await pool.acquire();
    pool.refresh();
    await endOfTurn();
    expect(gone).toEqual([[1, 'refreshed']]);
    expect(lease.pipeline.alive).toBe(true);
    expect((await pool.acquire()).instanceId).toBe(3);
    const next = pool.acquire();
    await lease.release();
    expect(gone).toEqual([
      [1, 'refreshed'],
      [2, 'refreshed'],
    ]);
    expect((await next).instanceId).toBe(4);
  });

  it('replaces what was being created by then', async () => {
    const made = deferred();
    const workshop = new Workshop();
    const pool = new PipelinePool({
      size: 1,
      create: (context) => made.promise.then(() => workshop.create(context)),
      destroy: workshop.destroy,
    });
    const given = pool.acquire();
    await endOfTurn();
    pool.refresh();
    made.resolve();
    expect((await given).instanceId).toBe(2);
    expect(workshop.destroyed).toEqual([1]);
  });

  it('never leases what it has destroyed, and destroys it once', async () => {
    const { pool, workshop } = poolOf({ size: 2 });
    await fill(pool, 2);
    pool.refresh();
    pool.refresh();
    const lease = await pool.acquire();
    expect(lease.pipeline.alive).toBe(true);
    pool.refresh();
    pool.refresh();
    await lease.release();
    expect(workshop.destroyed).toEqual([1, 2, 3]);
  });

  it('reaches instances in the inventory, and keeps `min`', async () => {
    const { pool, gone } = poolOf({ size: 2, min: 2 });
    await fill(pool, 2);
    await vi.advanceTimersByTimeAsync(5_000);
    pool.refresh();
    await endOfTurn();
    expect(gone.map(([, reason]) => reason)).toEqual(['refreshed', 'refreshed']);
    expect(pool.stats()).toMatchObject({ idle: 2, live: 2 });
    expect((await pool.acquire()).instanceId).toBeGreaterThan(2);
  });
});

describe('resize', () => {
  it('serves waiters when it grows', async () => {
    const { pool, workshop } = poolOf({ size: 1 });
    await pool.acquire();
    const waiting = [pool.acquire(), pool.acquire()];
    pool.resize(3);
    await Promise.all(waiting);
    expect(pool.stats()).toMatchObject({ size: 3, leased: 3 });
    expect(workshop.peak).toBe(3);
  });

  it('destroys idle instances when it shrinks, the longest unused first', async () => {
    const { pool, gone } = poolOf({ size: 4 });
    await fill(pool, 4);
    pool.resize(2);
    await endOfTurn();
    expect(gone).toEqual([
      [1, 'resized'],
      [2, 'resized'],
    ]);
  });

  it('destroys leased instances when they are released, whatever waits', async () => {
    const { pool, gone, workshop } = poolOf({ size: 3 });
    const leases = await Promise.all([pool.acquire(), pool.acquire(), pool.acquire()]);
    pool.resize(1);
    const waiting = pool.acquire();
    expect(leases.every(({ pipeline }) => pipeline.alive)).toBe(true);
    await leases[0]!.release();
    await leases[1]!.release();
    expect(gone).toEqual([
      [1, 'resized'],
      [2, 'resized'],
    ]);
    expect(await outcome(waiting)).toBe('pending');
    await leases[2]!.release();
    expect((await waiting).instanceId).toBe(3);
    expect(workshop.peak).toBe(3);
  });

  it('destroys a created instance that is beyond the new size', async () => {
    const made = deferred();
    const workshop = new Workshop();
    const pool = new PipelinePool({
      size: 2,
      create: (context) =>
        (context.instanceId === 2 ? made.promise : Promise.resolve()).then(() => workshop.create(context)),
      destroy: workshop.destroy,
    });
    const first = pool.acquire();
    const second = pool.acquire();
    const lease = await first;
    pool.resize(1);
    made.resolve();
    await endOfTurn();
    expect(workshop.destroyed).toEqual([2]);
    await lease.release();
    expect((await second).instanceId).toBe(1);
  });

  it('reaches instances in the inventory', async () => {
    const { pool, gone } = poolOf({ size: 3 });
    await fill(pool, 3);
    await vi.advanceTimersByTimeAsync(5_000);
    pool.resize(1);
    await endOfTurn();
    expect(gone).toEqual([
      [1, 'resized'],
      [2, 'resized'],
    ]);
    expect((await pool.acquire()).instanceId).toBe(3);
  });

  it('rejects what is not a size, or less than `min`', async () => {
    const { pool } = poolOf({ size: 3, min: 2 });
    expect(() => pool.resize(0)).toThrow(RangeError);
    expect(() => pool.resize(1)).toThrow('Expected `size` to be a whole number from 2, got 1 (number)');
    expect(() => pool.resize(2.5)).toThrow(RangeError);
    expect(() => pool.resize('3' as never)).toThrow(TypeError);
    expect(pool.stats().size).toBe(3);
  });
});

describe('`maxLeaseMs`', () => {
  it('revokes a lease: signal aborted, instance destroyed, slot free, event emitted', async () => {
    const { pool, gone, workshop } = poolOf({ maxLeaseMs: 1_000 });
    const emitted: unknown[] = [];
    pool.hooks.on('lease:revoked', ({ instanceId, taskId, heldMs, reason }) => {
      emitted.push([instanceId, taskId, heldMs, reason]);
    });
    const lease = await pool.acquire({ taskId: 'slow' });
    const { signal } = lease;
    const next = pool.acquire();
    await vi.advanceTimersByTimeAsync(999);
    expect(signal.aborted).toBe(false);
    await vi.advanceTimersByTimeAsync(1);
    expect(signal.reason).toBeInstanceOf(LeaseRevokedError);
    expect(signal.reason).toMatchObject({ code: 'ERR_LEASE_REVOKED', instanceId: 1, reason: 'max-lease' });
    expect(() => lease.pipeline).toThrow(LeaseRevokedError);
    expect(lease.isHeld).toBe(false);
    expect(emitted).toEqual([[1, 'slow', 1_000, 'max-lease']]);
    expect(gone).toEqual([[1, 'revoked']]);
    const second = await next;
    expect(second.instanceId).toBe(2);
    expect(workshop.peak).toBe(1);

    // What the late holder does now affects no other holder.
    await lease.release();
    await lease.release({ discard: true });
    expect(second.pipeline.alive).toBe(true);
    expect(pool.stats()).toMatchObject({ leased: 1, revoked: 1, released: 0 });
  });

  it('aborts a signal that is read only afterwards', async () => {
    const { pool } = poolOf({ maxLeaseMs: 10 });
    const lease = await pool.acquire();
    await vi.advanceTimersByTimeAsync(10);
    expect(lease.signal.aborted).toBe(true);
    expect(lease.signal.reason).toBeInstanceOf(LeaseRevokedError);
  });

  it('begins anew with each lease', async () => {
    const { pool, gone } = poolOf({ maxLeaseMs: 1_000 });
    for (let i = 0; i < 5; i++) {
      const lease = await pool.acquire();
      await vi.advanceTimersByTimeAsync(600);
      await lease.release();
    }
    expect(gone).toEqual([]);
  });

  it('settles `ended` at the end of the lease', async () => {
    const { pool } = poolOf({ maxLeaseMs: 1_000 });
    const first = await pool.acquire();
    const { ended } = first;
    expect(await outcome(ended)).toBe('pending');
    await vi.advanceTimersByTimeAsync(1_000);
    await ended;
    const second = await pool.acquire();
    const alsoEnded = second.ended;
    await second.release();
    await alsoEnded;
    await second.ended;
  });
});
