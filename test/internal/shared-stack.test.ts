import { describe, expect, it } from 'vitest';
import { LimiterClosedError } from '../../src/errors.js';
import { sharedStack } from '../../src/internal/shared-stack.js';

describe('sharedStack', () => {
  it('creates a new error each time, with the stack trace of the first', () => {
    const create = sharedStack(() => new LimiterClosedError('requests'));
    const [first, second] = [create(), create()];
    expect(second).not.toBe(first);
    expect(second).toMatchObject({ code: 'ERR_LIMITER_CLOSED', message: 'requests is closed' });
    expect(second.stack).toBe(first.stack);
    expect(first.stack).toContain('shared-stack.test.ts');
  });

  it('leaves the limit of stack traces as it was, also when the error cannot be created', () => {
    const { stackTraceLimit } = Error;
    let calls = 0;
    const create = sharedStack(() => {
      if (calls++ > 0) throw new TypeError('broken');
      return new Error('first');
    });
    create();
    expect(create).toThrow('broken');
    expect(Error.stackTraceLimit).toBe(stackTraceLimit);
    expect(new Error('later').stack).toContain('shared-stack.test.ts');
  });
});
