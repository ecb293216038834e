import { describe, expect, it } from 'vitest';
import { JobQueue } from '../../src/internal/job-queue.js';
import { deferred, endOfTurn } from '../support/promises.js';

describe('JobQueue', () => {
  it('runs as many jobs at once as `concurrency` allows, the others in the order of arrival', async () => {
    const queue = new JobQueue({ concurrency: 2 });
    const jobs = Array.from({ length: 4 }, () => deferred());
    const started: number[] = [];
    const all = jobs.map(({ promise }, i) =>
      queue.run(() => {
        started.push(i);
        return promise;
      }),
    );
    expect(started).toEqual([0, 1]);
    expect(queue.queued).toBe(2);
    jobs[1]?.resolve();
    await endOfTurn();
    expect(started).toEqual([0, 1, 2]);
    for (const { resolve } of jobs) resolve();
    await Promise.all(all);
    expect(started).toEqual([0, 1, 2, 3]);
    expect(queue.queued).toBe(0);
  });

  it('starts a job that need not wait before run returns', () => {
    let started = false;
    void new JobQueue({ concurrency: 1 }).run(() => {
      started = true;
    });
    expect(started).toBe(true);
  });

  it('settles as the job does, and goes on after one that rejects or throws synchronously', async () => {
    const queue = new JobQueue({ concurrency: 1 });
    const failed = queue.run(() => Promise.reject(new Error('failed')));
    const thrown = queue.run(() => {
      throw new Error('thrown');
    });
    const done = queue.run(() => 'done');
    await expect(failed).rejects.toThrow('failed');
    await expect(thrown).rejects.toThrow('thrown');
    expect(await done).toBe('done');
  });

  it('starts a higher priority first', async () => {
    const queue = new JobQueue({ concurrency: 1 });
    const { promise, resolve } = deferred();
    const order: string[] = [];
    const all = [
      queue.run(() => promise),
      queue.run(() => order.push('low'), { priority: -1 }),
      queue.run(() => order.push('usual')),
      queue.run(() => order.push('high'), { priority: 1 }),
    ];
    resolve();
    await Promise.all(all);
    expect(order).toEqual(['high', 'usual', 'low']);
  });

  it('removes a job whose signal aborts before it has started', async () => {
    const queue = new JobQueue({ concurrency: 1 });
    const { promise, resolve } = deferred();
    const first = queue.run(() => promise);
    const controller = new AbortController();
    const aborted = queue.run(() => 'started', { signal: controller.signal });
    controller.abort(new Error('left'));
    await expect(aborted).rejects.toThrow('left');
    expect(queue.queued).toBe(0);
    resolve();
    await first;
  });

  it('starts queued jobs at once when its concurrency grows', async () => {
    const queue = new JobQueue({ concurrency: 1 });
    const { promise, resolve } = deferred();
    const all = [1, 2, 3].map(() => queue.run(() => promise));
    queue.concurrency = 3;
    expect([queue.concurrency, queue.queued]).toEqual([3, 0]);
    resolve();
    await Promise.all(all);
  });
});
