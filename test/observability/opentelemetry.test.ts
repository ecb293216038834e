import { readFileSync } from 'node:fs';
import { setImmediate as turn } from 'node:timers/promises';
import { context, metrics as otelMetrics, SpanKind, SpanStatusCode, trace } from '@opentelemetry/api';
import { AsyncLocalStorageContextManager } from '@opentelemetry/context-async-hooks';
import {
  AggregationTemporality,
  DataPointType,
  InMemoryMetricExporter,
  MeterProvider,
  PeriodicExportingMetricReader,
} from '@opentelemetry/sdk-metrics';
import {
  BasicTracerProvider,
  InMemorySpanExporter,
  type ReadableSpan,
  SimpleSpanProcessor,
} from '@opentelemetry/sdk-trace-base';
import {
  anthropicPreset,
  geminiPreset,
  LIFECYCLE_EVENTS,
  LifecycleHooks,
  openAiPreset,
  ServiceGate,
} from 'pipeline-pool';
import { type TraceOptions, traceTo } from 'pipeline-pool/opentelemetry';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { type ErrorSummary, redactError } from '../../src/internal/redaction.js';
import { EXAMPLES } from '../support/event-payloads.js';
import { useFakeTimers } from '../support/fake-timers.js';
import { fleetStats } from '../support/fleet-stats.js';
import { admission, pool } from '../support/stories.js';

beforeAll(() => {
  context.setGlobalContextManager(new AsyncLocalStorageContextManager());
});
afterAll(() => context.disable());

function setUp(options: TraceOptions = {}) {
  const exporter = new InMemorySpanExporter();
  const provider = new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] });
  const tracer = provider.getTracer('test');
  const hooks = new LifecycleHooks();
  const errors: unknown[] = [];
  hooks.on('hook:error', ({ error }) => errors.push(error));
  const tracing = traceTo(hooks, { tracer, ...options });
  const spans = (): readonly ReadableSpan[] => {
    expect(errors).toEqual([]);
    return exporter.getFinishedSpans();
  };
  const span = (name: string): ReadableSpan => {
    const found = spans().find((candidate) => candidate.name === name);
    if (found === undefined)
      throw new Error(
        `No span ${name} among ${spans()
          .map((s) => s.name)
          .join(', ')}`,
      );
    return found;
  };
  /** From the root down to the span. */
  const path = (of: ReadableSpan): string => {
    const parent = spans().find((other) => other.spanContext().spanId === of.parentSpanContext?.spanId);
    return parent === undefined ? of.name : `${path(parent)} > ${of.name}`;
  };
  const paths = (): string[] => spans().map(path).sort();
  return { hooks, tracer, tracing, spans, span, path, paths };
}

type Hooks = LifecycleHooks;
const idsOf = (name: string) => ({ taskId: name, requestId: `r-${name}` });

const enter = (hooks: Hooks, name: string, instanceId = 1): void => {
  const ids = idsOf(name);
  hooks.emit('permit:acquired', { ...admission, ...ids, waitMs: 0 });
  hooks.emit('lease:acquired', { ...pool, ...ids, instanceId, waitMs: 0 });
  const waits = { waitMs: 0, admissionMs: 0, leaseMs: 0 };
  hooks.emit('request:started', { source: 'manager', ...ids, instanceId, ...waits });
};

const leave = (
  hooks: Hooks,
  name: string,
  outcome: 'ok' | 'failed' | 'aborted' = 'ok',
  error?: ErrorSummary,
): void => {
  const ids = idsOf(name);
  hooks.emit('request:finished', {
    source: 'manager',
    ...ids,
    instanceId: 1,
    outcome,
    durationMs: 5,
    ...(error && { error }),
  });
  hooks.emit('lease:released', { ...pool, ...ids, instanceId: 1, heldMs: 5, discarded: false });
  hooks.emit('permit:released', { ...admission, ...ids, outcome: 'ok' });
};

const called = { source: 'serper', callId: 1 };
const over = { attempts: 1, durationMs: 3, waitMs: 0, cache: 'off' } as const;

describe('the spans of a request', () => {
  it('lie under it: admission, wait, lease, tool, call and attempts', () => {
    const { hooks, paths } = setUp();
    const ids = idsOf('a');
    hooks.emit('request:queued', { source: 'manager', ...ids });
    hooks.emit('permit:queued', { ...admission, ...ids });
    hooks.emit('permit:acquired', { ...admission, ...ids, waitMs: 3 });
    hooks.emit('lease:queued', { ...pool, ...ids });
    enter(hooks, 'a');
    const tool = { source: 'main', ...ids, instanceId: 1, tool: 'search', toolCallId: 1 };
    const call = { ...called, ...ids, toolCallId: 1 };
    hooks.emit('tool:started', tool);
    hooks.emit('call:started', { ...call, attempt: 1, waitMs: 0 });
    hooks.emit('call:retried', { ...call, attempt: 1, class: 'rate-limited', status: 429, retryAfterMs: 2 });
    hooks.emit('call:started', { ...call, attempt: 2, waitMs: 0 });
    hooks.emit('call:finished', { ...call, ...over, outcome: 'ok', attempts: 2 });
    hooks.emit('tool:finished', { ...tool, outcome: 'ok', durationMs: 4 });
    leave(hooks, 'a');
    expect(paths()).toEqual([
      'pipeline request',
      'pipeline request > execute_tool search',
      'pipeline request > execute_tool search > call serper',
      'pipeline request > execute_tool search > call serper > attempt serper',
      'pipeline request > execute_tool search > call serper > attempt serper',
      'pipeline request > pipeline admission',
      'pipeline request > pipeline lease',
      'pipeline request > pipeline wait',
    ]);
  });

  it('belong to the span that was active when the request arrived, wherever the events are emitted', async () => {
    const { hooks, tracer, span, path } = setUp();
    const server = tracer.startSpan('POST /research');
    context.with(trace.setSpan(context.active(), server), () => {
      hooks.emit('request:queued', { source: 'manager', ...idsOf('a') });
    });
    const stranger = tracer.startSpan('another root');
    context.with(trace.setSpan(context.active(), stranger), () => {
      enter(hooks, 'a');
      hooks.emit('call:started', { ...called, ...idsOf('a'), attempt: 1, waitMs: 0 });
      hooks.emit('call:finished', { ...called, ...idsOf('a'), ...over, outcome: 'ok' });
      leave(hooks, 'a');
    });
    server.end();
    stranger.end();
    expect(path(span('pipeline lease'))).toBe('POST /research > pipeline request > pipeline lease');
    expect(path(span('attempt serper'))).toBe(
      'POST /research > pipeline request > call serper > attempt serper',
    );
  });

  it('put parallel calls under their own tools', () => {
    const { hooks, paths } = setUp();
    const ids = idsOf('a');
    hooks.emit('request:queued', { source: 'manager', ...ids });
    for (const [tool, toolCallId] of [
      ['search', 1],
      ['read', 2],
    ] as const) {
      hooks.emit('tool:started', { source: 'main', ...ids, tool, toolCallId });
    }
    for (const [source, toolCallId] of [
      ['jina', 2],
      ['serper', 1],
    ] as const) {
      hooks.emit('call:finished', {
        ...ids,
        ...over,
        source,
        callId: 1,
        toolCallId,
        outcome: 'ok',
        attempts: 0,
      });
    }
    for (const [tool, toolCallId] of [
      ['search', 1],
      ['read', 2],
    ] as const) {
      hooks.emit('tool:finished', {
        source: 'main',
        ...ids,
        tool,
        toolCallId,
        outcome: 'ok',
        durationMs: 1,
      });
    }
    leave(hooks, 'a');
    expect(paths()).toEqual([
      'pipeline request',
      'pipeline request > execute_tool read',
      'pipeline request > execute_tool read > call jina',
      'pipeline request > execute_tool search',
      'pipeline request > execute_tool search > call serper',
    ]);
  });

  it('carry ids and the attributes of the semantic conventions', () => {
    const { hooks, span } = setUp();
    const ids = { ...idsOf('a'), tenant: 'acme' };
    hooks.emit('request:queued', { source: 'manager', ...ids });
    enter(hooks, 'a', 7);
    const tool = { source: 'main', ...ids, instanceId: 7, tool: 'search', toolCallId: 1 };
    hooks.emit('tool:started', { ...tool, modelCallId: 'call_7' });
    hooks.emit('tool:finished', { ...tool, outcome: 'ok', durationMs: 1 });
    hooks.emit('call:throttled', { ...called, ...ids, reason: 'rate', waitMs: 40 });
    hooks.emit('call:started', { ...called, ...ids, attempt: 2, waitMs: 0, key: '…ab' });
    hooks.emit('call:finished', { ...called, ...ids, ...over, outcome: 'ok', attempts: 2, cache: 'miss' });
    leave(hooks, 'a');
    expect(span('pipeline request').attributes).toEqual({
      'pipeline_pool.source': 'manager',
      'pipeline_pool.task.id': 'a',
      'pipeline_pool.request.id': 'r-a',
      'pipeline_pool.tenant': 'acme',
      'pipeline_pool.instance.id': 7,
      'pipeline_pool.outcome': 'ok',
    });
    expect(span('execute_tool search').attributes).toMatchObject({
      'gen_ai.operation.name': 'execute_tool',
      'gen_ai.tool.name': 'search',
      'gen_ai.tool.type': 'function',
      'gen_ai.tool.call.id': 'call_7',
    });
    expect(span('call serper').kind).toBe(SpanKind.CLIENT);
    expect(span('call serper').attributes).toMatchObject({
      'pipeline_pool.attempts': 2,
      'pipeline_pool.cache': 'miss',
    });
    expect(span('call serper').events).toMatchObject([
      {
        name: 'pipeline_pool.throttled',
        attributes: { 'pipeline_pool.reason': 'rate', 'pipeline_pool.wait_ms': 40 },
      },
    ]);
    const attempt = span('attempt serper');
    expect(attempt.kind).toBe(SpanKind.INTERNAL);
    expect(attempt.attributes).toMatchObject({
      'pipeline_pool.attempt': 2,
      'pipeline_pool.key': '…ab',
      'http.request.resend_count': 1,
    });
  });

  it('record failures, and take an abort for no failure', () => {
    const { hooks, spans } = setUp();
    const error = redactError(Object.assign(new Error('too slow'), { code: 'ERR_REQUEST_TIMEOUT' }));
    for (const [name, outcome] of [
      ['a', 'failed'],
      ['b', 'aborted'],
    ] as const) {
      hooks.emit('request:queued', { source: 'manager', ...idsOf(name) });
      leave(hooks, name, outcome, error);
    }
    const [failing, aborted] = spans();
    expect(failing?.status).toEqual({ code: SpanStatusCode.ERROR, message: 'too slow' });
    expect(failing?.attributes['error.type']).toBe('ERR_REQUEST_TIMEOUT');
    expect(failing?.events.map(({ name }) => name)).toEqual(['exception']);
    expect(aborted?.status.code).toBe(SpanStatusCode.UNSET);
    expect(aborted?.attributes['pipeline_pool.outcome']).toBe('aborted');
  });

  it('end an attempt whose end was not emitted when the next one starts', () => {
    const { hooks, spans } = setUp();
    const call = { ...called, ...idsOf('a') };
    // Two gates of one name number their calls alike.
    for (let gate = 0; gate < 2; gate++) hooks.emit('call:started', { ...call, attempt: 1, waitMs: 0 });
    hooks.emit('call:finished', { ...call, ...over, outcome: 'ok' });
    expect(spans().filter(({ name }) => name === 'attempt serper')).toHaveLength(2);
  });

  it('record the status of a failed attempt', () => {
    const { hooks, span } = setUp();
    const call = { ...called, ...idsOf('a') };
    hooks.emit('call:started', { ...call, attempt: 1, waitMs: 0 });
    hooks.emit('call:retried', { ...call, attempt: 1, class: 'retryable', status: 503, retryAfterMs: 10 });
    hooks.emit('call:finished', { ...call, ...over, outcome: 'timeout' });
    expect(span('attempt serper').attributes).toMatchObject({
      'http.response.status_code': 503,
      'error.type': '503',
    });
    expect(span('call serper').attributes['error.type']).toBe('timeout');
    expect(span('call serper').events.map(({ name }) => name)).toEqual(['pipeline_pool.retry']);
  });

  it('name the model’s provider, its tokens and, for calls of `fetch`, the server', async () => {
    const { hooks, span } = setUp();
    const gate = new ServiceGate({ name: 'llm', hooks, ...openAiPreset() });
    const usage = { prompt_tokens: 20, completion_tokens: 3, total_tokens: 23 };
    const call = gate.fetch({ fetch: async () => Response.json({ usage }) });
    await (await call('https://llm.example.com:8443/v1/chat/completions?key=secret')).text();
    expect(span('call llm').attributes).toMatchObject({
      'server.address': 'llm.example.com',
      'gen_ai.operation.name': 'chat',
      'gen_ai.provider.name': 'openai',
      'gen_ai.usage.input_tokens': 20,
      'gen_ai.usage.output_tokens': 3,
    });
  });

  it('start at the beginning of a wait even if that was not observed', () => {
    useFakeTimers({ now: 1_000_000 });
    try {
      const { hooks, span } = setUp();
      hooks.emit('lease:acquired', { ...pool, taskId: 'a', instanceId: 1, waitMs: 400 });
      const { startTime, endTime } = span('pipeline wait');
      const ms = ([seconds, nanos]: readonly [number, number]) => seconds * 1_000 + nanos / 1e6;
      expect(ms(endTime) - ms(startTime)).toBeCloseTo(400, 0);
    } finally {
      vi.useRealTimers();
    }
  });

  it('record why a request was rejected', () => {
    const { hooks, paths, span } = setUp();
    const ids = idsOf('a');
    const error = redactError(new Error('full'));
    hooks.emit('request:queued', { source: 'manager', ...ids });
    hooks.emit('permit:queued', { ...admission, ...ids });
    hooks.emit('permit:rejected', { ...admission, ...ids, reason: 'timeout', waitMs: 50, error });
    hooks.emit('request:rejected', { source: 'manager', ...ids, outcome: 'failed', waitMs: 50, error });
    expect(paths()).toEqual(['pipeline request', 'pipeline request > pipeline admission']);
    expect(span('pipeline admission').attributes['error.type']).toBe('timeout');
    expect(span('pipeline request').status.code).toBe(SpanStatusCode.ERROR);
  });

  it('are children of the request and not of its lease, even if the event has only the task id', () => {
    const { hooks, paths } = setUp();
    hooks.emit('request:queued', { source: 'manager', ...idsOf('a') });
    enter(hooks, 'a');
    hooks.emit('call:finished', { ...called, taskId: 'a', ...over, outcome: 'ok', cache: 'hit' });
    leave(hooks, 'a');
    expect(paths()).toContain('pipeline request > call serper');
  });

  it('are children of the remaining lease when one of two ends first', () => {
    const { hooks, paths } = setUp();
    const lease = (instanceId: number) => ({ ...pool, taskId: 'a', instanceId });
    hooks.emit('lease:acquired', { ...lease(1), waitMs: 0 });
    hooks.emit('lease:acquired', { ...lease(2), waitMs: 0 });
    hooks.emit('lease:released', { ...lease(1), heldMs: 1, discarded: false });
    hooks.emit('call:finished', { ...called, taskId: 'a', ...over, outcome: 'ok', cache: 'hit' });
    hooks.emit('lease:released', { ...lease(2), heldMs: 1, discarded: false });
    expect(paths()).toEqual([
      'pipeline lease',
      'pipeline lease > pipeline lease',
      'pipeline lease > pipeline lease > call serper',
    ]);
  });

  it('work with pool and limiter alone', () => {
    const { hooks, paths } = setUp();
    const ids = { taskId: 'a' };
    hooks.emit('permit:acquired', { ...admission, ...ids, waitMs: 0 });
    hooks.emit('lease:queued', { ...pool, ...ids });
    hooks.emit('lease:acquired', { ...pool, ...ids, instanceId: 1, waitMs: 20 });
    hooks.emit('call:finished', { ...called, ...ids, ...over, outcome: 'ok', cache: 'hit' });
    hooks.emit('lease:released', { ...pool, ...ids, instanceId: 1, heldMs: 5, discarded: false });
    hooks.emit('call:finished', { ...called, ...ids, ...over, outcome: 'ok', cache: 'hit' });
    hooks.emit('permit:released', { ...admission, ...ids, outcome: 'ok' });
    expect(paths()).toEqual([
      'pipeline permit',
      'pipeline permit > call serper',
      'pipeline permit > pipeline lease',
      'pipeline permit > pipeline lease > call serper',
      'pipeline permit > pipeline wait',
    ]);
  });

  it('keep unnamed waiters apart', () => {
    const { hooks, paths } = setUp();
    hooks.emit('lease:queued', { ...pool });
    hooks.emit('lease:queued', { ...pool });
    hooks.emit('lease:acquired', { ...pool, instanceId: 1, waitMs: 20 });
    hooks.emit('lease:acquired', { ...pool, instanceId: 2, waitMs: 30 });
    hooks.emit('lease:revoked', { ...pool, instanceId: 1, heldMs: 5, reason: 'max-lease' });
    hooks.emit('lease:released', { ...pool, instanceId: 2, heldMs: 5, discarded: false });
    expect(paths()).toEqual(['pipeline lease', 'pipeline lease', 'pipeline wait', 'pipeline wait']);
  });

  it('end with the tracing, and no more are created', () => {
    const { hooks, tracing, paths } = setUp();
    hooks.emit('request:queued', { source: 'manager', ...idsOf('a') });
    hooks.emit('call:started', { ...called, ...idsOf('a'), attempt: 1, waitMs: 0 });
    tracing[Symbol.dispose]();
    for (const event of LIFECYCLE_EVENTS)
      expect(hooks.listenerCount(event)).toBe(event === 'hook:error' ? 1 : 0);
    expect(paths()).toEqual([
      'pipeline request',
      'pipeline request > call serper',
      'pipeline request > call serper > attempt serper',
    ]);
  });

  it('are bounded in number: the oldest is ended for the newest', () => {
    const { hooks, spans } = setUp({ maxOpenSpans: 3 });
    for (let i = 0; i < 10; i++) hooks.emit('request:queued', { source: 'manager', ...idsOf(`t${i}`) });
    expect(spans().map(({ attributes }) => attributes['pipeline_pool.task.id'])).toEqual([
      't0',
      't1',
      't2',
      't3',
      't4',
      't5',
      't6',
    ]);
    expect(spans()[0]?.attributes['pipeline_pool.forgotten']).toBe(true);
  });

  it('are created from all events in any order without an error', () => {
    const { hooks, spans } = setUp();
    for (const events of [LIFECYCLE_EVENTS, LIFECYCLE_EVENTS.toReversed()]) {
      for (const event of events) if (event !== 'hook:error') hooks.emit(event, EXAMPLES[event] as never);
    }
    expect(spans().length).toBeGreaterThan(5);
  });
});

describe('withSpan', () => {
  it('makes the host’s spans children of the request, and tools children of the host’s spans', async () => {
    const { hooks, tracer, tracing, paths } = setUp();
    const ids = idsOf('a');
    hooks.emit('request:queued', { source: 'manager', ...ids });
    enter(hooks, 'a');
    const answer = await tracing.withSpan(ids, async () => {
      await turn();
      return tracer.startActiveSpan('turn 1', async (span) => {
        await turn();
        const tool = { source: 'main', ...ids, instanceId: 1, tool: 'search', toolCallId: 1 };
        hooks.emit('tool:started', tool);
        hooks.emit('tool:finished', { ...tool, outcome: 'ok', durationMs: 1 });
        span.end();
        return 42;
      });
    });
    leave(hooks, 'a');
    expect(answer).toBe(42);
    expect(paths()).toEqual([
      'pipeline request',
      'pipeline request > pipeline lease',
      'pipeline request > turn 1',
      'pipeline request > turn 1 > execute_tool search',
    ]);
  });

  it('does so for a lease without a manager', () => {
    const { hooks, tracer, tracing, paths } = setUp();
    hooks.emit('lease:acquired', { ...pool, taskId: 'a', instanceId: 1, waitMs: 0 });
    tracing.withSpan({ taskId: 'a' }, () => tracer.startSpan('work').end());
    hooks.emit('lease:released', { ...pool, taskId: 'a', instanceId: 1, heldMs: 5, discarded: false });
    expect(paths()).toEqual(['pipeline lease', 'pipeline lease > work']);
  });

  it('never mixes concurrent requests', async () => {
    const { hooks, tracer, tracing, spans } = setUp();
    const names = Array.from({ length: 20 }, (_, i) => `t${i}`);
    for (const name of names) hooks.emit('request:queued', { source: 'manager', ...idsOf(name) });
    await Promise.all(
      names.map((name, i) =>
        tracing.withSpan(idsOf(name), async () => {
          for (let step = 0; step < 3; step++) {
            for (let turns = (i * 7 + step) % 5; turns >= 0; turns--) await turn();
            tracer.startSpan('step', { attributes: { name } }).end();
          }
        }),
      ),
    );
    for (const name of names) leave(hooks, name);
    const requests = new Map(
      spans()
        .filter(({ name }) => name === 'pipeline request')
        .map((span) => [span.spanContext().spanId, span.attributes['pipeline_pool.task.id']]),
    );
    const steps = spans().filter(({ name }) => name === 'step');
    expect(steps).toHaveLength(60);
    for (const step of steps) {
      expect(requests.get(step.parentSpanContext?.spanId ?? '')).toBe(step.attributes.name);
    }
  });

  it('applies to every step of a generator, and returns it when the reader leaves', async () => {
    const { hooks, tracer, tracing, paths } = setUp();
    hooks.emit('request:queued', { source: 'manager', ...idsOf('a') });
    const stream = tracing.withSpan(idsOf('a'), async function* () {
      try {
        for (let i = 1; ; i++) {
          tracer.startSpan(`token ${i}`).end();
          yield i;
        }
      } finally {
        await turn();
        tracer.startSpan('clean-up').end();
      }
    });
    const taken: number[] = [];
    for await (const token of stream) {
      taken.push(token);
      if (token === 3) break;
    }
    expect(taken).toEqual([1, 2, 3]);
    leave(hooks, 'a');
    expect(paths()).toEqual([
      'pipeline request',
      'pipeline request > clean-up',
      'pipeline request > token 1',
      'pipeline request > token 2',
      'pipeline request > token 3',
    ]);
  });

  it('passes throws on to a generator, and disposes of it', async () => {
    const { hooks, tracer, tracing, paths } = setUp();
    hooks.emit('request:queued', { source: 'manager', ...idsOf('a') });
    const stream = () =>
      tracing.withSpan(idsOf('a'), async function* (): AsyncGenerator<string> {
        try {
          yield 'first';
        } catch (error) {
          tracer.startSpan('caught').end();
          yield (error as Error).message;
        } finally {
          tracer.startSpan('left').end();
        }
      });
    const thrown = stream();
    await thrown.next();
    expect(await thrown.throw(new Error('enough'))).toEqual({ done: false, value: 'enough' });
    await thrown.return(undefined);
    const disposed = stream();
    await disposed.next();
    await disposed[Symbol.asyncDispose]();
    leave(hooks, 'a');
    expect(paths()).toEqual([
      'pipeline request',
      'pipeline request > caught',
      'pipeline request > left',
      'pipeline request > left',
    ]);
  });

  it('runs work of unknown ids as is', () => {
    const { tracing } = setUp();
    expect(tracing.withSpan({ taskId: 'unknown' }, () => 7)).toBe(7);
    expect(() => tracing.withSpan({}, 7 as never)).toThrow(/`work` to be a function/);
  });
});

describe('the metrics of OpenTelemetry', () => {
  const measured = async (
    emitAll: (hooks: LifecycleHooks) => unknown,
    options: Pick<TraceOptions, 'sources' | 'tenants'> = {},
  ) => {
    const exporter = new InMemoryMetricExporter(AggregationTemporality.CUMULATIVE);
    const reader = new PeriodicExportingMetricReader({ exporter, exportIntervalMillis: 1_000_000 });
    const provider = new MeterProvider({ readers: [reader] });
    const { hooks } = setUp({ meter: provider.getMeter('test'), ...options });
    await emitAll(hooks);
    await provider.forceFlush();
    const metrics = exporter
      .getMetrics()
      .flatMap(({ scopeMetrics }) => scopeMetrics.flatMap((s) => s.metrics));
    await provider.shutdown();
    return metrics;
  };
  const point = (metrics: Awaited<ReturnType<typeof measured>>, name: string) =>
    metrics
      .find(({ descriptor }) => descriptor.name === name)
      ?.dataPoints.map(({ attributes, value }) => [attributes, value]);

  it('are in seconds and follow the semantic conventions', async () => {
    const metrics = await measured((hooks) => {
      for (const event of LIFECYCLE_EVENTS)
        if (event !== 'hook:error') hooks.emit(event, EXAMPLES[event] as never);
      hooks.emit('tool:finished', { ...EXAMPLES['tool:finished'], outcome: 'timeout' });
    });
    for (const { descriptor } of metrics) {
      expect(descriptor.name).toMatch(/^(pipeline_pool|gen_ai\.(execute_tool|client))\./);
      expect(descriptor.unit).toMatch(/^(s|\{\w+\})$/);
      expect(descriptor.description).not.toBe('');
    }
    expect(point(metrics, 'gen_ai.execute_tool.duration')).toMatchObject([
      [
        {
          'gen_ai.operation.name': 'execute_tool',
          'gen_ai.tool.name': 'search',
          'gen_ai.tool.type': 'function',
        },
        {
          sum: 2.31,
          buckets: { boundaries: expect.arrayContaining([0.01, 0.02, 40.96, 81.92, 163.84, 5_242.88]) },
        },
      ],
      [{ 'gen_ai.tool.name': 'search', 'error.type': 'timeout' }, { count: 1 }],
    ]);
    expect(point(metrics, 'pipeline_pool.lease.use_time')).toMatchObject([
      [
        { 'pipeline_pool.pool.name': 'pool' },
        { sum: 200, buckets: { boundaries: expect.arrayContaining([1_800]) } },
      ],
    ]);
  });

  it('count the duration and the tokens of calls of models, where the gate knows them', async () => {
    const metrics = await measured(async (hooks) => {
      const openai = new ServiceGate({ name: 'llm', hooks, ...openAiPreset() });
      await openai.run(() => ({ usage: { prompt_tokens: 20, completion_tokens: 3, total_tokens: 23 } }));
      await openai.run(() => ({ usage: 'none' }));
      const cacheKey = 'a';
      const data = { usage: { input_tokens: 5, output_tokens: 0 } };
      await Promise.all([openai.run(() => data, { cacheKey }), openai.run(() => data, { cacheKey })]);
      const claude = new ServiceGate({ name: 'claude', hooks, ...anthropicPreset() });
      const events = [
        { type: 'message_start', message: { usage: { input_tokens: 0, cache_read_input_tokens: 80 } } },
        { type: 'message_delta', usage: { output_tokens: 4 } },
        { type: 'message_delta', usage: { output_tokens: 9 } },
      ];
      for await (const _ of claude.stream(() => ReadableStream.from<unknown>(events)));
      const gemini = new ServiceGate({ name: 'gemini', hooks, ...geminiPreset() });
      const usageMetadata = { promptTokenCount: 7, candidatesTokenCount: 2, thoughtsTokenCount: 30 };
      await gemini.run(() => ({ usageMetadata }));
      await expect(gemini.run(() => Promise.reject(new TypeError('no body')))).rejects.toThrow();
      const search = new ServiceGate({ name: 'search', hooks });
      await search.run(() => ({ usage: { prompt_tokens: 1 } }));
    });
    const chat = (provider: string) => ({
      'gen_ai.operation.name': provider === 'gcp.gemini' ? 'generate_content' : 'chat',
      'gen_ai.provider.name': provider,
    });
    const tokens = (provider: string, type: string) => ({ ...chat(provider), 'gen_ai.token.type': type });
    expect(point(metrics, 'gen_ai.client.token.usage')).toMatchObject([
      [
        tokens('openai', 'input'),
        {
          sum: 25,
          count: 2,
          buckets: { boundaries: Array.from({ length: 14 }, (_, i) => 4 ** i) },
        },
      ],
      [tokens('openai', 'output'), { sum: 3, count: 2 }],
      [tokens('anthropic', 'input'), { sum: 80 }],
      [tokens('anthropic', 'output'), { sum: 9, count: 1 }],
      [tokens('gcp.gemini', 'input'), { sum: 7 }],
      [tokens('gcp.gemini', 'output'), { sum: 32 }],
    ]);
    expect(point(metrics, 'gen_ai.client.operation.duration')).toMatchObject([
      [chat('openai'), { count: 3, buckets: { boundaries: expect.arrayContaining([0.01, 81.92]) } }],
      [chat('anthropic'), { count: 1 }],
      [chat('gcp.gemini'), { count: 1 }],
      [{ ...chat('gcp.gemini'), 'error.type': 'TypeError' }, { count: 1 }],
    ]);
  });

  it('report the current number of instances and waiters', async () => {
    const metrics = await measured((hooks) => {
      hooks.emit('lease:queued', { ...pool, live: 3, leased: 3, queued: 2, size: 4 });
      hooks.emit('lease:released', {
        ...pool,
        live: 3,
        leased: 1,
        queued: 0,
        size: 5,
        instanceId: 1,
        heldMs: 1,
        discarded: false,
      });
    });
    expect(point(metrics, 'pipeline_pool.instance.count')).toEqual([
      [{ 'pipeline_pool.pool.name': 'pool', 'pipeline_pool.instance.state': 'used' }, 1],
      [{ 'pipeline_pool.pool.name': 'pool', 'pipeline_pool.instance.state': 'idle' }, 2],
    ]);
    expect(point(metrics, 'pipeline_pool.instance.max')).toEqual([
      [{ 'pipeline_pool.pool.name': 'pool' }, 5],
    ]);
    expect(point(metrics, 'pipeline_pool.lease.pending_requests')).toEqual([
      [{ 'pipeline_pool.pool.name': 'pool' }, 0],
    ]);
  });

  it('have a value of every instrument after every event', async () => {
    const shared = { maxConcurrent: 200, fleet: fleetStats() };
    const options = {
      sources: {
        gates: [{ name: 'serper', stats: () => ({ running: 1, keys: [], limiter: shared }) }],
        requests: () => [{ budget: { limits: { usd: 1 }, spent: { usd: 0 }, reserved: { usd: 0 } } }],
      },
      tenants: 5,
    };
    const names: string[] = [];
    const create = (name: string) => {
      names.push(name);
      return { addCallback: () => {} };
    };
    const meter = {
      createHistogram: create,
      createCounter: create,
      createObservableUpDownCounter: create,
      createObservableGauge: create,
      createObservableCounter: create,
    };
    traceTo(new LifecycleHooks(), { meter, ...options });
    const metrics = await measured((hooks) => {
      for (const event of LIFECYCLE_EVENTS)
        hooks.emit(event, {
          ...EXAMPLES[event],
          tenant: 'acme',
          provider: 'openai',
          inputTokens: 1,
        } as never);
    }, options);
    expect(metrics.map(({ descriptor }) => descriptor.name).toSorted()).toEqual(names.toSorted());
    expect(JSON.stringify(metrics)).not.toContain('undefined');
  });

  it('report permits and keys, of the sources if there are any', async () => {
    const levels = async (sources?: TraceOptions['sources']) => {
      const metrics = await measured(
        (hooks) => {
          hooks.emit('permit:acquired', EXAMPLES['permit:acquired']);
          hooks.emit('key:cooldown', EXAMPLES['key:cooldown']);
        },
        sources === undefined ? {} : { sources },
      );
      return ['permit.active', 'permit.pending_requests', 'permit.max', 'key.count'].map((name) =>
        point(metrics, `pipeline_pool.${name}`)?.map(([attributes, value]) => [
          ...Object.values(attributes as object),
          value,
        ]),
      );
    };
    const keys = { ready: 0, 'half-open': 0, cooldown: 1, exhausted: 0, quarantined: 0 };
    expect(await levels()).toEqual([
      [['requests', 3]],
      [['requests', 1]],
      [['requests', 10]],
      Object.entries(keys).map(([state, count]) => ['serper', state, count]),
    ]);
    const limiter = { name: 'own', stats: () => ({ active: 7, queued: 8, maxConcurrent: 9 }) };
    expect((await levels({ limiter })).slice(0, 3)).toEqual([[['own', 7]], [['own', 8]], [['own', 9]]]);
  });

  it('count a leak once, although its lease is returned later', async () => {
    const metrics = await measured((hooks) => {
      for (const kind of ['overdue', 'returned'] as const)
        hooks.emit('lease:leaked', { ...EXAMPLES['lease:leaked'], kind });
    });
    expect(point(metrics, 'pipeline_pool.lease.leaks')).toEqual([
      [{ 'pipeline_pool.pool.name': 'pool', 'pipeline_pool.reason': 'overdue' }, 1],
    ]);
  });

  it('report what several processes do under their shared limits, as gauges', async () => {
    const own = { maxConcurrent: 200, active: 3, queued: 1 };
    const limiter = { name: 'requests', stats: () => ({ ...own, fleet: fleetStats({ lost: 2 }) }) };
    const windows = { name: 'serper', stats: () => ({ fleet: fleetStats({ available: false }) }) };
    const local = { name: 'local', stats: () => ({ limiter: own }) };
    const metrics = await measured(() => {}, { sources: { limiter, gates: [windows, local] } });
    const [requests, serper] = ['requests', 'serper'].map((name) => ({ 'pipeline_pool.limit.name': name }));
    const fleet = (name: string) => point(metrics, `pipeline_pool.fleet.${name}`);
    expect(fleet('active')).toEqual([[requests, 150]]);
    expect(fleet('max')).toEqual([[requests, 200]]);
    for (const [name, ...values] of [
      ['queued', 12, 12],
      ['members', 4, 4],
      ['available', 1, 0],
      ['permits_lost', 2, 0],
    ] as const) {
      expect(fleet(name)).toEqual([
        [requests, values[0]],
        [serper, values[1]],
      ]);
    }
    // A sum over processes would mean nothing.
    for (const { descriptor, dataPointType } of metrics.filter((m) =>
      m.descriptor.name.includes('.fleet.'),
    )) {
      const isTotal = descriptor.name.endsWith('lost');
      expect(dataPointType).toBe(isTotal ? DataPointType.SUM : DataPointType.GAUGE);
    }
    const scrapedFor = (sources: object) => traceTo(new LifecycleHooks(), { sources });
    expect(() => scrapedFor('manager' as never)).toThrow(/`sources` to be an object/);
  });

  it('count what calls spend of budgets and those that did not fit, and the requests of tenants', async () => {
    const emit = (hooks: LifecycleHooks) => {
      for (const cost of [
        { usd: 0.25, calls: 1 },
        { usd: 0.5, calls: 1 },
      ])
        hooks.emit('call:finished', { ...EXAMPLES['call:finished'], source: 'llm', cost, tenant: 'a' });
      hooks.emit('budget:exceeded', { ...EXAMPLES['budget:exceeded'], source: 'llm', meter: 'usd' });
      for (const tenant of ['a', 'b'])
        for (const event of ['request:queued', 'request:started'] as const)
          hooks.emit(event, { ...EXAMPLES[event], tenant, requestId: tenant } as never);
    };
    const budget = {
      limits: { usd: 1, calls: Number.POSITIVE_INFINITY },
      spent: { usd: 0.5, calls: 1 },
      reserved: { usd: 0.125, calls: 1 },
    };
    const sources = { requests: () => [{ budget }, {}] };
    const metrics = await measured(emit, { tenants: 1, sources });
    const left = (state: string) => ({ 'pipeline_pool.meter': 'usd', 'pipeline_pool.budget.state': state });
    expect(point(metrics, 'pipeline_pool.budget.amount')).toEqual([
      [left('spent'), 0.5],
      [left('reserved'), 0.125],
      [left('left'), 0.375],
    ]);
    expect(point(metrics, 'pipeline_pool.tenant.cost')).toEqual([
      [{ 'pipeline_pool.tenant': 'a', 'pipeline_pool.meter': 'usd' }, 0.75],
      [{ 'pipeline_pool.tenant': 'a', 'pipeline_pool.meter': 'calls' }, 2],
    ]);
    const of = (meter: string) => ({ 'pipeline_pool.gate.name': 'llm', 'pipeline_pool.meter': meter });
    expect(point(metrics, 'pipeline_pool.call.cost')).toEqual([
      [of('usd'), 0.75],
      [of('calls'), 2],
    ]);
    expect(point(metrics, 'pipeline_pool.budget.rejections')).toEqual([[of('usd'), 1]]);
    expect(point(metrics, 'pipeline_pool.tenant.active')).toEqual([
      [{ 'pipeline_pool.tenant': 'a' }, 1],
      [{ 'pipeline_pool.tenant': 'other' }, 1],
    ]);
  });

  it('count failures of the shared store of a cache', async () => {
    const { source, operation } = EXAMPLES['cache:store-failed'];
    const metrics = await measured((hooks) =>
      hooks.emit('cache:store-failed', EXAMPLES['cache:store-failed']),
    );
    const labels = { 'pipeline_pool.gate.name': source, 'pipeline_pool.cache.operation': operation };
    expect(point(metrics, 'pipeline_pool.cache.store_failures')).toEqual([[labels, 1]]);
  });

  it('hold no task, request, tenant or key', async () => {
    const metrics = await measured((hooks) => {
      for (const event of LIFECYCLE_EVENTS)
        hooks.emit(event, { ...EXAMPLES[event], tenant: 'acme' } as never);
    });
    const text = JSON.stringify(metrics);
    for (const secret of ['research-1', '"r1"', 'acme', 'a1b2', 'c3d4']) expect(text).not.toContain(secret);
  });

  it('take an abort for no error, and have the same error.type as the spans', async () => {
    const coded = redactError(Object.assign(new Error('too slow'), { code: 'ERR_REQUEST_TIMEOUT' }));
    const finished = { ...EXAMPLES['request:finished'], error: coded };
    const call = { ...EXAMPLES['call:finished'], error: redactError(new TypeError('no body')) };
    const metrics = await measured((hooks) => {
      hooks.emit('request:finished', { ...finished, outcome: 'aborted' });
      hooks.emit('request:finished', { ...finished, outcome: 'timeout' });
      hooks.emit('request:rejected', { ...EXAMPLES['request:rejected'], outcome: 'aborted', error: coded });
      hooks.emit('call:finished', { ...call, outcome: 'aborted' });
      hooks.emit('call:finished', { ...call, outcome: 'fatal' });
      hooks.emit('tool:finished', { ...EXAMPLES['tool:finished'], outcome: 'aborted', error: coded });
    });
    const errorTypes = (name: string) =>
      point(metrics, name)?.map(([labels]) => Object(labels)['error.type']);
    expect(errorTypes('pipeline_pool.request.duration')).toEqual([undefined, 'ERR_REQUEST_TIMEOUT']);
    expect(errorTypes('pipeline_pool.request.rejections')).toEqual([undefined]);
    expect(errorTypes('pipeline_pool.call.duration')).toEqual([undefined, 'TypeError']);
    expect(errorTypes('gen_ai.execute_tool.duration')).toEqual([undefined]);
  });

  it('come from a tracer and a meter that carry the version of the package', () => {
    const getTracer = vi.spyOn(trace, 'getTracer');
    const getMeter = vi.spyOn(otelMetrics, 'getMeter');
    traceTo(new LifecycleHooks()).stop();
    const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'));
    expect(getTracer).toHaveBeenCalledWith('pipeline-pool', version);
    expect(getMeter).toHaveBeenCalledWith('pipeline-pool', version);
    vi.restoreAllMocks();
  });

  it('end with the tracing', async () => {
    const added: string[] = [];
    const removed: string[] = [];
    const instrument = (name: string) => ({
      record: () => {},
      add: () => {},
      addCallback: () => added.push(name),
      removeCallback: () => removed.push(name),
    });
    const meter = {
      createHistogram: instrument,
      createCounter: instrument,
      createObservableUpDownCounter: instrument,
      createObservableGauge: instrument,
      createObservableCounter: instrument,
    };
    const tracing = traceTo(new LifecycleHooks(), { meter });
    tracing.stop();
    tracing.stop();
    expect(removed.toSorted()).toEqual(added.toSorted());
    expect(new Set(removed).size).toBe(removed.length);
    expect(removed).toContain('pipeline_pool.request.active');
  });

  it('count running requests by id', async () => {
    const metrics = await measured((hooks) => {
      enter(hooks, 'a');
      enter(hooks, 'b');
      leave(hooks, 'a');
      leave(hooks, 'never-started');
    });
    expect(point(metrics, 'pipeline_pool.request.active')).toEqual([[{}, 1]]);
  });
});

describe('traceTo', () => {
  it('works without an SDK', () => {
    const hooks = new LifecycleHooks();
    const errors = vi.fn();
    hooks.on('hook:error', errors);
    const tracing = traceTo(hooks);
    for (const event of LIFECYCLE_EVENTS)
      if (event !== 'hook:error') hooks.emit(event, EXAMPLES[event] as never);
    tracing.stop();
    expect(errors).not.toHaveBeenCalled();
  });

  it.each([
    [{ tracer: {} }, /`tracer` to be a Tracer/],
    [{ meter: {} }, /`meter` to be a Meter/],
    [{ maxOpenSpans: 0 }, /`maxOpenSpans`/],
    [{ spans: true }, /Unknown option `spans` in traceTo/],
  ])('rejects %o', (options, message) => {
    expect(() => traceTo(new LifecycleHooks(), options as never)).toThrow(message);
  });
});
