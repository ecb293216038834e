import { AsyncLocalStorage } from 'node:async_hooks';
import { describe, expect, it } from 'vitest';
import { AsyncContext, NEUTRAL_CONTEXT } from '../../src/internal/async-context.js';

const task = new AsyncLocalStorage<string>();

describe('AsyncContext', () => {
  it("calls in the context in which it was created, whatever the caller's", async () => {
    const context = task.run('a', () => new AsyncContext());
    await task.run('b', async () => {
      expect(context.run(() => task.getStore())).toBe('a');
      expect(await context.run(async () => Promise.resolve().then(() => task.getStore()))).toBe('a');
      expect(task.getStore()).toBe('b');
    });
  });

  it('rethrows what the function throws', () => {
    const context = new AsyncContext();
    expect(() =>
      context.run(() => {
        throw new Error('thrown');
      }),
    ).toThrow('thrown');
  });

  it('is no open handle to tools that list them, such as Jest', () => {
    expect(new AsyncContext().hasRef()).toBe(false);
  });

  it('has a neutral context, which belongs to no task', () => {
    expect(task.run('a', () => NEUTRAL_CONTEXT.run(() => task.getStore()))).toBeUndefined();
  });
});
