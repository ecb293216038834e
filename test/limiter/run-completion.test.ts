import { describe, expect, it } from 'vitest';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import { completionOf, RunPermit, Semaphore } from '../../src/limiter/semaphore.js';

function semaphoreOf(maxConcurrent: number) {
  const options = { maxConcurrent };
  return new Semaphore(new ConcurrencyLimiter(options), options);
}

describe('A run completion', () => {
  it('keeps no reference to the permit of a run that has ended', () => {
    const permit = semaphoreOf(1).take(1, undefined);
    const completion = completionOf(permit);
    expect(completion.permit).toBe(permit);
    completion.finish('ok');
    expect(completion.permit).toBeUndefined();
    expect(permit.state).toBe('released');
  });

  it('counts generations past the largest small integer, and never confuses the permits of two runs', () => {
    const semaphore = semaphoreOf(5);
    const completion = completionOf(semaphore.takeShared()!);
    completion.generation = 2 ** 31 - 1;
    const last = new RunPermit(completion);
    expect(semaphore.active).toBe(1);
    completion.finish('ok');
    expect(semaphore.active).toBe(0);

    semaphore.takeShared();
    expect(completionOf(semaphore.takeShared()!)).toBe(completion);
    const next = new RunPermit(completion);
    last.release();
    expect(semaphore.active).toBe(2);
    next.release();
    next.release();
    completion.finish('ok');
    completion.finish('ok');
    expect(semaphore.active).toBe(1);
    expect(completion.generation).toBe(-(2 ** 31) + 2);
  });
});
