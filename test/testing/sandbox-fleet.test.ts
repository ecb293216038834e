import { describe, expect, it, vi } from 'vitest';
import { SandboxFleet } from '../../src/testing/sandbox-fleet.js';
import { onFakeTimers } from '../support/fake-timers.js';

onFakeTimers();

const order = { templateId: 'base', metadata: {}, timeoutMs: 1000, pauseAtEnd: false };

describe('SandboxFleet', () => {
  it('kills a sandbox when its time is up, and not before', async () => {
    const fleet = new SandboxFleet(1, 0);
    fleet.reserve();
    fleet.create(order);
    await vi.advanceTimersByTimeAsync(999);
    expect(fleet.all).toHaveLength(1);
    expect(fleet.reserve()).toBe(false);
    await vi.advanceTimersByTimeAsync(1);
    expect(fleet.all).toHaveLength(0);
    expect(fleet.reserve()).toBe(true);
  });

  it('keeps a sandbox whose time was extended', async () => {
    const fleet = new SandboxFleet(1, 0);
    fleet.reserve();
    const sandbox = fleet.create(order);
    await vi.advanceTimersByTimeAsync(500);
    sandbox.setTimeout(1000);
    await vi.advanceTimersByTimeAsync(999);
    expect(fleet.all).toEqual([sandbox]);
    expect(sandbox.endAt.getTime() - sandbox.startedAt.getTime()).toBe(1500);
    await vi.advanceTimersByTimeAsync(1);
    expect(fleet.all).toEqual([]);
  });

  it('stops the time of a paused sandbox', async () => {
    const fleet = new SandboxFleet(1, 0);
    fleet.reserve();
    const sandbox = fleet.create({ ...order, pauseAtEnd: true });
    await vi.advanceTimersByTimeAsync(1000);
    expect(sandbox.state).toBe('paused');
    await vi.advanceTimersByTimeAsync(100_000);
    expect(fleet.all).toEqual([sandbox]);
    fleet.reserve();
    sandbox.resume(1000);
    await vi.advanceTimersByTimeAsync(1000);
    expect(sandbox.state).toBe('paused');
  });

  it('counts a killed sandbox until its lag is over', async () => {
    const fleet = new SandboxFleet(1, 300);
    fleet.reserve();
    fleet.kill(fleet.create(order));
    await vi.advanceTimersByTimeAsync(299);
    expect(fleet.reserve()).toBe(false);
    await vi.advanceTimersByTimeAsync(1);
    expect(fleet.reserve()).toBe(true);
    expect(fleet.peakAlive).toBe(1);
  });
});
