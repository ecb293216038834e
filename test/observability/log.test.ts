import { Writable } from 'node:stream';
import { pino } from 'pino';
import { LIFECYCLE_EVENTS, LifecycleHooks, QueueFullError } from 'pipeline-pool';
import { describe, expect, it } from 'vitest';
import { type Logger, logTo } from '../../src/observability/log.js';
import { LOG_LINES } from '../../src/observability/log-lines.js';
import { EXAMPLES } from './examples.js';

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
  it('writes the three lines exactly', () => {
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

  it('says so when a lease has no task', () => {
    const hooks = new LifecycleHooks();
    const lines = new Lines();
    logTo(hooks, lines);
    const { taskId: _, ...unnamed } = EXAMPLES['lease:acquired'];
    hooks.emit('lease:acquired', { ...unnamed, instanceId: 2 });
    expect(lines.written).toEqual([['info', 'Acquired pipeline instance 2 for an unnamed task']]);
  });

  it('writes a line for every event at its usual level', async () => {
    const hooks = new LifecycleHooks();
    const lines = new Lines();
    logTo(hooks, lines, { level: 'debug' });
    for (const event of LIFECYCLE_EVENTS) hooks.emit(event, EXAMPLES[event] as never);
    const written = lines.written.map(([level, text], i) => `${LIFECYCLE_EVENTS[i]}  ${level}  ${text}`);
    expect(written).toHaveLength(LIFECYCLE_EVENTS.length);
    await expect(`${written.join('\n')}\n`).toMatchFileSnapshot('snapshots/log-lines.txt');
  });

  it('warns of leaks, revocations, creation failures, unhealthy instances, quarantines and failing listeners', () => {
    const warned = LIFECYCLE_EVENTS.filter((event) => LOG_LINES[event].level === 'warn');
    expect(warned).toEqual([
      'instance:createFailed',
      'instance:unhealthy',
      'instance:destroyFailed',
      'lease:leaked',
      'lease:revoked',
      'request:rejected',
      'key:quarantined',
      'tool:disconnectFailed',
      'hook:error',
    ]);
  });

  it('does not listen to events below its level', () => {
    const hooks = new LifecycleHooks();
    logTo(hooks, new Lines());
    expect(hooks.hears('call:started')).toBe(false);
    expect(hooks.hears('lease:leaked')).toBe(true);
    const quiet = new LifecycleHooks();
    logTo(quiet, new Lines(), { level: 'warn', levels: { 'lease:leaked': 'off', 'call:retried': 'warn' } });
    expect(quiet.hears('lease:acquired')).toBe(false);
    expect(quiet.hears('lease:leaked')).toBe(false);
    expect(quiet.hears('call:retried')).toBe(true);
  });

  it('warns of a request that failed, and keeps one that is well for debugging', () => {
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
    expect(chosen.hears('request:finished')).toBe(false);
  });

  it('leaves out of a line what the event does not know', () => {
    const hooks = new LifecycleHooks();
    const lines = new Lines();
    logTo(hooks, lines, { level: 'debug' });
    const { error: _, ...well } = EXAMPLES['request:finished'];
    const { status: __, ...cooled } = EXAMPLES['key:cooledDown'];
    const { instanceId: ___, ...shared } = EXAMPLES['tool:disconnectFailed'];
    hooks.emit('request:finished', { ...well, outcome: 'ok' });
    hooks.emit('key:cooledDown', cooled);
    hooks.emit('key:quarantined', { ...EXAMPLES['key:quarantined'], forMs: 3_600_000 });
    hooks.emit('tool:disconnectFailed', shared);
    hooks.emit('cache:hit', { source: 'serper', shared: true });
    hooks.emit('lease:leaked', { ...EXAMPLES['lease:leaked'], kind: 'collected' });
    hooks.emit('lease:leaked', { ...EXAMPLES['lease:leaked'], kind: 'returned' });
    expect(lines.written.map(([, text]) => text)).toEqual([
      'Request of task research-1 finished in 95.0 s: ok',
      'Key …a1b2 of serper cools down for 60.0 s',
      'Key …a1b2 of serper quarantined for 1 h: dead',
      'Could not disconnect the client of tool runCode: no memory left',
      'Cache of serper: shared a call in flight',
      'Pipeline instance 2 held by task research-1 for 30 min was dropped without release',
      'Pipeline instance 2 held by task research-1 for 30 min came back after all',
    ]);
  });

  it('writes an event at the level it was given', () => {
    const hooks = new LifecycleHooks();
    const lines = new Lines();
    logTo(hooks, lines, { levels: { 'call:retried': 'error' } });
    hooks.emit('call:retried', EXAMPLES['call:retried']);
    expect(lines.written[0]?.[0]).toBe('error');
  });

  it('writes the first and then each n-th of a sampled event', () => {
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

  it('gives pino the ids and durations beside the exact line', () => {
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
      error: new QueueFullError({
        source: 'pool',
        waitedMs: 0,
        active: 5,
        queued: 9,
        size: 5,
        retryAfterMs: 1_000,
      }),
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
      err: { code: 'ERR_QUEUE_FULL', retryAfterMs: 1_000 },
    });
    expect(rejected.err.stack).toContain('QueueFullError');
  });

  it('takes pino and the console as they are', () => {
    const hooks = new LifecycleHooks();
    logTo(hooks, console, { level: 'error' })();
    logTo(hooks, pino({ enabled: false }), { level: 'error' })();
    expect(hooks.hears('lease:leaked')).toBe(false);
  });

  it('keeps a task id with a line break on one line', () => {
    const hooks = new LifecycleHooks();
    const lines = new Lines();
    logTo(hooks, lines);
    hooks.emit('lease:acquired', { ...EXAMPLES['lease:acquired'], taskId: 'a\nReleased \u001b[31m\u2028' });
    expect(lines.written[0]?.[1]).toBe(
      'Acquired pipeline instance 2 for task a\\nReleased \\u001b[31m\\u2028',
    );
  });

  it('shows what was thrown even where it is no error', () => {
    const hooks = new LifecycleHooks();
    const lines = new Lines();
    logTo(hooks, lines);
    hooks.emit('hook:error', { event: 'call:started', error: Object.create(null) });
    hooks.emit('hook:error', { event: 'call:started', error: 'plain\ntext' });
    expect(lines.written.map(([, text]) => text)).toEqual([
      'A listener of call:started failed: a value that cannot be shown',
      'A listener of call:started failed: plain\\ntext',
    ]);
  });

  it('survives a logger that throws or rejects, and other listeners hear of it', async () => {
    const hooks = new LifecycleHooks();
    const faults: unknown[] = [];
    const failing: Logger = {
      debug: () => undefined,
      info: () => {
        throw new Error('disk full');
      },
      warn: () => Promise.reject(new Error('socket closed')),
      error: () => undefined,
    };
    logTo(hooks, failing);
    hooks.on('hook:error', ({ event, error }) => faults.push([event, (error as Error).message]));
    hooks.emit('lease:acquired', EXAMPLES['lease:acquired']);
    hooks.emit('lease:leaked', EXAMPLES['lease:leaked']);
    await new Promise(setImmediate);
    expect(faults).toEqual([
      ['lease:acquired', 'disk full'],
      ['lease:leaked', 'socket closed'],
    ]);
  });

  it('writes nothing more once it is ended', () => {
    const hooks = new LifecycleHooks();
    const lines = new Lines();
    const stop = logTo(hooks, lines, { level: 'debug' });
    stop();
    stop();
    for (const event of LIFECYCLE_EVENTS) {
      expect(hooks.hears(event)).toBe(false);
      hooks.emit(event, EXAMPLES[event] as never);
    }
    expect(lines.written).toEqual([]);
  });

  it('lets several loggers write side by side', () => {
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
  ])('refuses %o', (options, message) => {
    expect(() => logTo(new LifecycleHooks(), console, options as never)).toThrow(message);
  });

  it('refuses what is no logger and what are no hooks', () => {
    expect(() => logTo(new LifecycleHooks(), undefined as never)).toThrow(/`logger` to be a logger/);
    expect(() => logTo(new LifecycleHooks(), { info() {} } as never)).toThrow(
      /`logger.debug` to be a function/,
    );
    expect(() => logTo({} as never, console)).toThrow(/`hooks` to be a LifecycleHooks/);
  });
});
