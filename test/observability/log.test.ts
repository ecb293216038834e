import { Writable } from 'node:stream';
import { pino } from 'pino';
import { LIFECYCLE_EVENTS, LifecycleHooks, QueueFullError } from 'pipeline-pool';
import { describe, expect, it } from 'vitest';
import { redactError } from '../../src/internal/redaction.js';
import { type Logger, logTo } from '../../src/observability/logging/log.js';
import { defaultLevelOf } from '../../src/observability/logging/log-lines.js';
import { EXAMPLES } from '../support/event-payloads.js';

class Lines {
  readonly written: [level: string, ...args: unknown[]][] = [];
  debug(...args: unknown[]) {
    this.written.push(['debug', ...args]);
  }
  info(...args: unknown[]) {
    this.written.push(['info', ...args]);
  }
  warn(...args: unknown[]) {
    this.written.push(['warn', ...args]);
  }
  error(...args: unknown[]) {
    this.written.push(['error', ...args]);
  }
}

describe('logTo', () => {
  it('writes the three contractual lines exactly', () => {
    const hooks = new LifecycleHooks();
    const lines = new Lines();
    logTo(hooks, lines);
    hooks.emit('permit:acquired', {
      ...EXAMPLES['permit:acquired'],
      active: 3,
      maxConcurrent: 10,
    });
    hooks.emit('lease:acquired', { ...EXAMPLES['lease:acquired'], instanceId: 2, taskId: 'xxx' });
    hooks.emit('lease:released', { ...EXAMPLES['lease:released'], instanceId: 2, taskId: 'xxx' });
    expect(lines.written).toEqual([
      ['info', 'Concurrency: 3/10 active requests'],
      ['info', 'Acquired pipeline instance 2 for task xxx'],
      ['info', 'Released pipeline instance 2 for task xxx'],
    ]);
  });

  it('names a lease without a task id an unnamed task', () => {
    const hooks = new LifecycleHooks();
    const lines = new Lines();
    logTo(hooks, lines);
    const { taskId: _, ...unnamed } = EXAMPLES['lease:acquired'];
    hooks.emit('lease:acquired', { ...unnamed, instanceId: 2 });
    expect(lines.written).toEqual([['info', 'Acquired pipeline instance 2 for an unnamed task']]);
  });

  it('writes a line for every event at its default level', async () => {
    const hooks = new LifecycleHooks();
    const lines = new Lines();
    logTo(hooks, lines, { level: 'debug' });
    for (const event of LIFECYCLE_EVENTS) hooks.emit(event, EXAMPLES[event] as never);
    const written = lines.written.map(([level, text], i) => `${LIFECYCLE_EVENTS[i]}  ${level}  ${text}`);
    expect(written).toHaveLength(LIFECYCLE_EVENTS.length);
    await expect(`${written.join('\n')}\n`).toMatchFileSnapshot('snapshots/log-lines.txt');
  });

  it('logs leaks, revocations, failures, unhealthy instances, quarantines and listener errors at warn', () => {
    const warned = LIFECYCLE_EVENTS.filter((event) => defaultLevelOf(event) === 'warn');
    expect(warned).toEqual([
      'instance:create-failed',
      'instance:unhealthy',
      'instance:destroy-failed',
      'lease:leaked',
      'lease:revoked',
      'request:rejected',
      'key:quarantined',
      'cache:store-failed',
      'budget:exceeded',
      'budget:unmetered',
      'tool:disconnect-failed',
      'fleet:unavailable',
      'limit:mismatch',
      'permit:lost',
      'hook:error',
    ]);
  });

  it('attaches no listener to an event below its level', () => {
    const hooks = new LifecycleHooks();
    logTo(hooks, new Lines());
    expect(hooks.hasListeners('call:started')).toBe(false);
    expect(hooks.hasListeners('lease:leaked')).toBe(true);
    const quiet = new LifecycleHooks();
    logTo(quiet, new Lines(), { level: 'warn', levels: { 'lease:leaked': 'off', 'call:retried': 'warn' } });
    expect(quiet.hasListeners('lease:acquired')).toBe(false);
    expect(quiet.hasListeners('lease:leaked')).toBe(false);
    expect(quiet.hasListeners('call:retried')).toBe(true);
  });

  it('logs a failed request at warn and a successful one at debug', () => {
    const hooks = new LifecycleHooks();
    const lines = new Lines();
    logTo(hooks, lines);
    const finished = EXAMPLES['request:finished'];
    for (const outcome of ['ok', 'aborted', 'failed', 'timeout'] as const) {
      hooks.emit('request:finished', { ...finished, outcome });
    }
    expect(lines.written).toEqual([
      ['warn', 'Request of task research-1 finished in 95.0 s: failed: no memory left'],
      ['warn', 'Request of task research-1 finished in 95.0 s: timeout: no memory left'],
    ]);
    const chosen = new LifecycleHooks();
    logTo(chosen, new Lines(), { levels: { 'request:finished': 'debug' } });
    expect(chosen.hasListeners('request:finished')).toBe(false);
  });

  it('logs a cooldown of more than a day at warn and a shorter one at info', () => {
    const hooks = new LifecycleHooks();
    const lines = new Lines();
    logTo(hooks, lines);
    const { status: _, ...cooldown } = EXAMPLES['key:cooldown'];
    for (const retryAfterMs of [86_400_000, 86_400_001, 57 * 365 * 86_400_000]) {
      hooks.emit('key:cooldown', { ...cooldown, retryAfterMs });
    }
    expect(lines.written.map(([level]) => level)).toEqual(['info', 'warn', 'warn']);
    const important = new Lines();
    logTo(hooks, important, { level: 'warn' });
    hooks.emit('key:cooldown', { ...cooldown, retryAfterMs: 60_000 });
    hooks.emit('key:cooldown', { ...cooldown, retryAfterMs: 172_800_000 });
    expect(important.written).toHaveLength(1);
    const chosen = new Lines();
    logTo(hooks, chosen, { levels: { 'key:cooldown': 'info' } });
    hooks.emit('key:cooldown', { ...cooldown, retryAfterMs: 172_800_000 });
    expect(chosen.written.map(([level]) => level)).toEqual(['info']);
  });

  it('has no listener for events below its level, also where the level depends on the payload', () => {
    const hooks = new LifecycleHooks();
    const stop = logTo(hooks, new Lines(), { level: 'error' });
    expect(LIFECYCLE_EVENTS.filter((event) => hooks.hasListeners(event))).toEqual([]);
    stop();
    logTo(hooks, new Lines(), { level: 'warn' });
    expect(hooks.hasListeners('request:finished')).toBe(true);
  });

  it('omits fields that the payload lacks', () => {
    const hooks = new LifecycleHooks();
    const lines = new Lines();
    logTo(hooks, lines, { level: 'debug' });
    const { error: _, ...well } = EXAMPLES['request:finished'];
    const { status: __, ...cooled } = EXAMPLES['key:cooldown'];
    const { instanceId: ___, ...shared } = EXAMPLES['tool:disconnect-failed'];
    hooks.emit('request:finished', { ...well, outcome: 'ok' });
    hooks.emit('key:cooldown', cooled);
    hooks.emit('key:quarantined', { ...EXAMPLES['key:quarantined'], retryAfterMs: 3_600_000 });
    hooks.emit('tool:disconnect-failed', shared);
    hooks.emit('cache:hit', { source: 'serper', shared: true });
    hooks.emit('lease:leaked', { ...EXAMPLES['lease:leaked'], kind: 'collected' });
    hooks.emit('lease:leaked', { ...EXAMPLES['lease:leaked'], kind: 'returned' });
    expect(lines.written.map(([, text]) => text)).toEqual([
      'Request of task research-1 finished in 95.0 s: ok',
      'Key …a1b2 of serper in cooldown for 60.0 s',
      'Key …a1b2 of serper quarantined for 1 h: unauthorized',
      'Could not disconnect the client of tool runCode: no memory left',
      'Cache of serper: shared an in-flight call',
      'Pipeline instance 2 held by task research-1 for 30 min was garbage-collected without release',
      'Pipeline instance 2 held by task research-1 for 30 min was released late',
    ]);
  });

  it('writes an event at its configured level', () => {
    const hooks = new LifecycleHooks();
    const lines = new Lines();
    logTo(hooks, lines, { levels: { 'call:retried': 'error' } });
    hooks.emit('call:retried', EXAMPLES['call:retried']);
    expect(lines.written[0]?.[0]).toBe('error');
  });

  it('writes the first and then every n-th of a sampled event', () => {
    const hooks = new LifecycleHooks();
    const lines = new Lines();
    logTo(hooks, lines, {
      levels: { 'call:started': 'info' },
      sampleEvery: { 'call:started': 3 },
      format: 'structured',
    });
    for (let callId = 1; callId <= 7; callId++) {
      hooks.emit('call:started', { ...EXAMPLES['call:started'], callId });
    }
    expect(lines.written.map(([, object]) => object)).toMatchObject([
      { callId: 1, sampledEvery: 3 },
      { callId: 4, sampledEvery: 3 },
      { callId: 7, sampledEvery: 3 },
    ]);
  });

  it('passes ids and durations to pino beside the exact line', () => {
    const chunks: string[] = [];
    const sink = new Writable({
      write: (chunk, _, done) => {
        chunks.push(String(chunk));
        done();
      },
    });
    const hooks = new LifecycleHooks();
    logTo(hooks, pino({ base: null, timestamp: false }, sink), { format: 'structured' });
    hooks.emit('lease:acquired', EXAMPLES['lease:acquired']);
    hooks.emit('lease:rejected', {
      ...EXAMPLES['lease:rejected'],
      error: redactError(
        new QueueFullError({
          source: 'pool',
          waitMs: 0,
          active: 5,
          queued: 9,
          size: 5,
          retryAfterMs: 1_000,
        }),
      ),
    });
    const [acquired, rejected] = chunks.map((chunk) => JSON.parse(chunk));
    expect(acquired).toEqual({
      level: 30,
      msg: 'Acquired pipeline instance 2 for task research-1',
      event: 'lease:acquired',
      ...EXAMPLES['lease:acquired'],
    });
    expect(rejected).toMatchObject({
      event: 'lease:rejected',
      reason: 'timeout',
      err: { code: 'ERR_QUEUE_FULL', message: expect.stringContaining('is full') },
    });
    expect(rejected.err.stack).toContain('QueueFullError');
  });

  it('names hook:error as the event of its structured line, and the event of the failed listener beside it', () => {
    const hooks = new LifecycleHooks();
    const lines = new Lines();
    logTo(hooks, lines, { format: 'structured' });
    hooks.emit('hook:error', { event: 'lease:acquired', error: redactError('disk full') });
    expect(lines.written[0]?.[1]).toMatchObject({ event: 'hook:error', failedEvent: 'lease:acquired' });
  });

  it('accepts pino and the console', () => {
    const hooks = new LifecycleHooks();
    logTo(hooks, console, { level: 'error' })();
    logTo(hooks, pino({ enabled: false }), { level: 'error' })();
    expect(hooks.hasListeners('lease:leaked')).toBe(false);
  });

  it('escapes line breaks, control characters and bidirectional overrides of a task id', () => {
    const hooks = new LifecycleHooks();
    const lines = new Lines();
    logTo(hooks, lines);
    hooks.emit('lease:acquired', {
      ...EXAMPLES['lease:acquired'],
      taskId: 'a\nReleased \u001b[31m\u2028\u202e',
    });
    expect(lines.written[0]?.[1]).toBe(
      'Acquired pipeline instance 2 for task a\\nReleased \\u001b[31m\\u2028\\u202e',
    );
  });

  it('writes a line for an error whose message is not a string', () => {
    const hooks = new LifecycleHooks();
    const lines = new Lines();
    logTo(hooks, lines);
    for (const message of [['no', 'memory'], { text: 'no' }, Symbol('no'), 7]) {
      const error = Object.assign(new Error('x'), { message }) as never;
      hooks.emit('hook:error', { event: 'call:started', error });
    }
    expect(lines.written.map(([, text]) => text)).toEqual([
      'A listener of call:started failed: no, memory',
      'A listener of call:started failed: (an object)',
      'A listener of call:started failed: Symbol(no)',
      'A listener of call:started failed: 7',
    ]);
  });

  it('writes a line for a thrown value that is not an error, or whose message is not a string', () => {
    const hooks = new LifecycleHooks();
    const lines = new Lines();
    logTo(hooks, lines);
    hooks.emit('hook:error', { event: 'call:started', error: Object.create(null) });
    hooks.emit('hook:error', { event: 'call:started', error: redactError('plain\ntext') });
    const odd = Object.assign(new Error(), { message: ['no', 'memory'] });
    hooks.emit('lease:rejected', { ...EXAMPLES['lease:rejected'], error: odd } as never);
    hooks.emit('request:rejected', { ...EXAMPLES['request:rejected'], error: odd } as never);
    expect(lines.written.map(([, text]) => text)).toEqual([
      'A listener of call:started failed: Error',
      'A listener of call:started failed: plain\\ntext',
      'No pipeline instance of pool for task research-1 after 30.0 s: timeout',
      'Request of task research-1 rejected after 30.0 s: timeout: no, memory',
    ]);
  });

  it('reports a logger that throws or rejects as hook:error', async () => {
    const hooks = new LifecycleHooks();
    const errors: unknown[] = [];
    const failing: Logger = {
      debug: () => undefined,
      info: () => {
        throw new Error('disk full');
      },
      warn: () => Promise.reject(new Error('socket closed')),
      error: () => undefined,
    };
    logTo(hooks, failing);
    hooks.on('hook:error', ({ event, error }) => errors.push([event, (error as Error).message]));
    hooks.emit('lease:acquired', EXAMPLES['lease:acquired']);
    hooks.emit('lease:leaked', EXAMPLES['lease:leaked']);
    await new Promise(setImmediate);
    expect(errors).toEqual([
      ['lease:acquired', 'disk full'],
      ['lease:leaked', 'socket closed'],
    ]);
  });

  it('writes nothing after it was stopped', () => {
    const hooks = new LifecycleHooks();
    const lines = new Lines();
    const stop = logTo(hooks, lines, { level: 'debug' });
    stop();
    stop();
    for (const event of LIFECYCLE_EVENTS) {
      expect(hooks.hasListeners(event)).toBe(false);
      hooks.emit(event, EXAMPLES[event] as never);
    }
    expect(lines.written).toEqual([]);
  });

  it('serves several loggers at once', () => {
    const hooks = new LifecycleHooks();
    const first = new Lines();
    const second = new Lines();
    const stopFirst = logTo(hooks, first);
    logTo(hooks, second);
    hooks.emit('lease:acquired', EXAMPLES['lease:acquired']);
    stopFirst();
    hooks.emit('lease:released', EXAMPLES['lease:released']);
    expect([first.written.length, second.written.length]).toEqual([1, 2]);
  });

  it.each([
    [{ level: 'loud' }, /`level` to be one of .* got "loud"/],
    [{ format: 'json' }, /`format` to be one of .* got "json"/],
    [{ levels: { 'lease:lost': 'info' } }, /Unknown option `lease:lost` in levels/],
    [{ levels: { 'lease:leaked': 'loud' } }, /`levels.lease:leaked`/],
    [{ sampleEvery: { 'call:started': 0 } }, /`sampleEvery.call:started` to be a whole number from 1/],
    [{ verbose: true }, /Unknown option `verbose` in logTo/],
  ])('rejects %o', (options, message) => {
    expect(() => logTo(new LifecycleHooks(), console, options as never)).toThrow(message);
  });

  it('rejects a value that is no logger or no LifecycleHooks', () => {
    expect(() => logTo(new LifecycleHooks(), undefined as never)).toThrow(/`logger` to be a logger/);
    expect(() => logTo(new LifecycleHooks(), { info() {} } as never)).toThrow(
      /`logger.debug` to be a function/,
    );
    expect(() => logTo({} as never, console)).toThrow(/`hooks` to be a LifecycleHooks/);
  });
});
