import { AsyncLocalStorage } from 'node:async_hooks';
import { describe, expect, it } from 'vitest';
import { AsyncContext, NEUTRAL_CONTEXT } from '../../src/internal/async-context.js';

const task = new AsyncLocalStorage<string>();

describe('AsyncContext', () => {
  it('calls in the context in which it was made, whoever calls', async () => {
    const context = task.run('a', () => new AsyncContext());
    await task.run('b', async () => {
      expect(context.run(() => task.getStore())).toBe('a');
      expect(await context.run(async () => Promise.resolve().then(() => task.getStore()))).toBe('a');
      expect(task.getStore()).toBe('b');
    });
  });

  it('passes on what is thrown', () => {
    const context = new AsyncContext();
    expect(() =>
      context.run(() => {
        throw new Error('thrown');
      }),
    ).toThrow('thrown');
  });

  it('has a neutral one, which is no task', () => {
    expect(task.run('a', () => NEUTRAL_CONTEXT.run(() => task.getStore()))).toBeUndefined();
  });
});
