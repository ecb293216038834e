import { describe, expect, it } from 'vitest';
import { Lane } from '../../src/internal/lane.js';
import { deferred, turn } from '../limiter/event-loop.js';

describe('Lane', () => {
  it('runs so many jobs at once, the others in the order they came', async () => {
    const lane = new Lane({ concurrency: 2 });
    const jobs = Array.from({ length: 4 }, () => deferred());
    const begun: number[] = [];
    const all = jobs.map(({ promise }, i) =>
      lane.run(() => {
        begun.push(i);
        return promise;
      }),
    );
    expect(begun).toEqual([0, 1]);
    expect([lane.running, lane.waiting]).toEqual([2, 2]);
    jobs[1]?.resolve();
    await turn();
    expect(begun).toEqual([0, 1, 2]);
    for (const { resolve } of jobs) resolve();
    await Promise.all(all);
    expect([lane.running, lane.waiting]).toEqual([0, 0]);
  });

  it('runs any number at once where no concurrency is given', async () => {
    const lane = new Lane();
    const { promise, resolve } = deferred();
    const all = Array.from({ length: 100 }, () => lane.run(() => promise));
    expect([lane.concurrency, lane.running]).toEqual([Number.POSITIVE_INFINITY, 100]);
    resolve();
    await Promise.all(all);
  });

  it('begins a job that finds room before run returns', () => {
    let begun = false;
    void new Lane({ concurrency: 1 }).run(() => {
      begun = true;
    });
    expect(begun).toBe(true);
  });

  it('settles as the job does, and goes on after one that fails or throws at once', async () => {
    const lane = new Lane({ concurrency: 1 });
    const failed = lane.run(() => Promise.reject(new Error('failed')));
    const thrown = lane.run(() => {
      throw new Error('thrown');
    });
    const done = lane.run(() => 'done');
    await expect(failed).rejects.toThrow('failed');
    await expect(thrown).rejects.toThrow('thrown');
    expect(await done).toBe('done');
  });

  it('lets a higher priority go first', async () => {
    const lane = new Lane({ concurrency: 1 });
    const { promise, resolve } = deferred();
    const order: string[] = [];
    const all = [
      lane.run(() => promise),
      lane.run(() => order.push('low'), { priority: -1 }),
      lane.run(() => order.push('usual')),
      lane.run(() => order.push('high'), { priority: 1 }),
    ];
    resolve();
    await Promise.all(all);
    expect(order).toEqual(['high', 'usual', 'low']);
  });

  it('takes a job out again when its signal aborts before it has begun', async () => {
    const lane = new Lane({ concurrency: 1 });
    const { promise, resolve } = deferred();
    const first = lane.run(() => promise);
    const controller = new AbortController();
    const aborted = lane.run(() => 'begun', { signal: controller.signal });
    controller.abort(new Error('left'));
    await expect(aborted).rejects.toThrow('left');
    expect(lane.waiting).toBe(0);
    resolve();
    await first;
  });

  it('begins nothing while it is paused, and all there is room for when it goes on', async () => {
    const lane = new Lane({ concurrency: 2 });
    lane.pause();
    const begun: number[] = [];
    const all = [1, 2, 3].map((i) => lane.run(() => begun.push(i)));
    await turn();
    expect([lane.paused, begun]).toEqual([true, []]);
    lane.resume();
    await Promise.all(all);
    expect([lane.paused, begun]).toEqual([false, [1, 2, 3]]);
  });

  it('begins waiting jobs at once when its concurrency grows', async () => {
    const lane = new Lane({ concurrency: 1 });
    const { promise, resolve } = deferred();
    const all = [1, 2, 3].map(() => lane.run(() => promise));
    lane.concurrency = 3;
    expect(lane.running).toBe(3);
    resolve();
    await Promise.all(all);
  });

  it('settles onIdle when nothing runs or waits, and forgets what waits by clear', async () => {
    const lane = new Lane({ concurrency: 1 });
    const { promise, resolve } = deferred();
    void lane.run(() => promise);
    void lane.run(() => {
      throw new Error('never begun');
    });
    lane.clear();
    expect(lane.waiting).toBe(0);
    resolve();
    await lane.onIdle();
    expect(lane.running).toBe(0);
  });
});
