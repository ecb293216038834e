import { describe, expectTypeOf, it } from 'vitest';
import {
  type LifecycleEventName,
  type LifecycleEvents,
  LifecycleHooks,
  type LifecycleListener,
  type PermitRejection,
} from '../../src/index.js';
import type { ErrorSummary } from '../../src/internal/redaction.js';

const hooks = new LifecycleHooks();

describe('The types of LifecycleHooks', () => {
  it('give a listener the payload of its own event', () => {
    hooks.on('permit:acquired', ({ source, taskId, waitMs, active, weight }) => {
      expectTypeOf(source).toEqualTypeOf<string>();
      expectTypeOf(taskId).toEqualTypeOf<string | undefined>();
      expectTypeOf([waitMs, active, weight]).toEqualTypeOf<number[]>();
    });
    hooks.once('permit:rejected', (payload) => {
      expectTypeOf(payload.reason).toEqualTypeOf<PermitRejection>();
      expectTypeOf(payload.error).toEqualTypeOf<ErrorSummary>();
    });
    hooks.on('lease:revoked', ({ instanceId, reason }) => {
      expectTypeOf(instanceId).toEqualTypeOf<number>();
      expectTypeOf(reason).toEqualTypeOf<'max-lease' | 'closed' | 'abandoned'>();
    });
    hooks.on('request:finished', ({ taskId, requestId }) => {
      expectTypeOf([taskId, requestId]).toEqualTypeOf<string[]>();
    });
    hooks.on('hook:error', ({ event }) => expectTypeOf(event).toEqualTypeOf<LifecycleEventName>());
  });

  it('take a listener that is async, or returns anything', () => {
    expectTypeOf<LifecycleListener<'limit:changed'>>().parameters.toEqualTypeOf<
      [LifecycleEvents['limit:changed']]
    >();
    hooks.on('limit:changed', async () => 7);
    hooks.on('limit:changed', () => 'ignored');
  });

  it('refuse an unknown event, and reading what an event does not know', () => {
    // @ts-expect-error permit:acquired is the name
    hooks.on('permit:given', () => {});
    // @ts-expect-error a permit knows no instance
    hooks.on('permit:acquired', ({ instanceId }) => instanceId);
    // @ts-expect-error payloads are read-only
    hooks.on('limit:changed', (payload) => (payload.previous = 3));
  });

  it('require the whole payload of an event that is emitted', () => {
    hooks.emit('limit:changed', { source: 'limiter', previous: 1, maxConcurrent: 2 });
    // @ts-expect-error source and previous are missing
    hooks.emit('limit:changed', { maxConcurrent: 2 });
  });
});
