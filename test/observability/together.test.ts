import { setImmediate as turn } from 'node:timers/promises';
import { context } from '@opentelemetry/api';
import { AsyncLocalStorageContextManager } from '@opentelemetry/context-async-hooks';
import {
  BasicTracerProvider,
  InMemorySpanExporter,
  SimpleSpanProcessor,
} from '@opentelemetry/sdk-trace-base';
import { ConcurrencyLimiter, LifecycleHooks, logTo, PipelineManager, PipelinePool } from 'pipeline-pool';
import { traceTo } from 'pipeline-pool/opentelemetry';
import { collectMetrics } from 'pipeline-pool/prometheus';
import { recordTimeline } from 'pipeline-pool/timeline';
import { Registry } from 'prom-client';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';

beforeAll(() => {
  context.setGlobalContextManager(new AsyncLocalStorageContextManager());
});
afterAll(() => context.disable());

/** A manager with one instance and all observers. */
function observed() {
  const hooks = new LifecycleHooks();
  const exporter = new InMemorySpanExporter();
  const provider = new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] });
  const tracer = provider.getTracer('test');
  const tracing = traceTo(hooks, { tracer });
  const timeline = recordTimeline(hooks);
  const lines: string[] = [];
  const write = (line: object | string): void => void lines.push(String(line));
  logTo(hooks, { debug: write, info: write, warn: write, error: write });
  const registry = new Registry();
  const pool = new PipelinePool({ size: 1, create: () => ({}), hooks });
  const limiter = new ConcurrencyLimiter({ maxConcurrent: 3, hooks });
  const manager = new PipelineManager({ pool, limiter, hooks });
  collectMetrics(hooks, { registry, sources: manager });
  const paths = (): string[] => {
    const spans = exporter.getFinishedSpans();
    const path = (span: (typeof spans)[number]): string => {
      const parent = spans.find((other) => other.spanContext().spanId === span.parentSpanContext?.spanId);
      return parent === undefined ? span.name : `${path(parent)} > ${span.name}`;
    };
    return spans.map(path);
  };
  return { manager, tracing, tracer, timeline, lines, registry, paths };
}

describe('all observers together, on a real manager', () => {
  it('agree on what happened', async () => {
    const { manager, tracing, tracer, timeline, lines, registry, paths } = observed();
    await Promise.all(
      ['a', 'b'].map((taskId) =>
        manager.run(taskId, (request) =>
          tracing.withSpan(request, async () => {
            await turn();
            tracer.startSpan(`turn of ${taskId}`).end();
            expect(await registry.metrics()).toContain('pipeline_pool_usage{pool="pool"} 1');
          }),
        ),
      ),
    );
    await manager.shutdown();
    expect(lines).toEqual([
      'Concurrency: 1/3 active requests',
      'Concurrency: 2/3 active requests',
      'Acquired pipeline instance 1 for task a',
      'Released pipeline instance 1 for task a',
      'Acquired pipeline instance 1 for task b',
      'Released pipeline instance 1 for task b',
    ]);
    const { requests, instances } = timeline.toJSON();
    expect(
      requests.map(({ taskId, outcome, spans }) => [taskId, outcome, spans.map(({ kind }) => kind)]),
    ).toEqual([
      ['a', 'ok', expect.arrayContaining(['permit', 'wait-lease', 'lease'])],
      ['b', 'ok', expect.arrayContaining(['permit', 'wait-lease', 'lease'])],
    ]);
    expect(requests.every(({ spans }) => spans.every(({ endMs }) => endMs !== undefined))).toBe(true);
    expect(instances).toMatchObject([{ instanceId: 1, lane: 0, reason: 'closed' }]);
    expect(paths()).toContain('pipeline request > turn of a');
    expect(paths()).toContain('pipeline request > turn of b');
    const text = await registry.metrics();
    expect(text).toContain('pipeline_requests_total{outcome="ok"} 2');
    expect(text).toContain('pipeline_active_requests 0');
    expect(text).toContain('pipeline_pool_usage{pool="pool"} 0');
  });

  it('record a stream up to its last item', async () => {
    const { manager, tracing, tracer, timeline, paths } = observed();
    const stream = manager.stream('a', (request) =>
      tracing.withSpan(request, async function* () {
        for (let i = 1; i <= 3; i++) {
          await turn();
          tracer.startSpan(`token ${i}`).end();
          yield i;
        }
      }),
    );
    const taken: number[] = [];
    for await (const token of stream) {
      taken.push(token);
      expect(timeline.toJSON().requests[0]).not.toHaveProperty('endMs');
    }
    expect(taken).toEqual([1, 2, 3]);
    await manager.shutdown();
    expect(timeline.toJSON().requests).toMatchObject([{ taskId: 'a', outcome: 'ok' }]);
    expect(paths().filter((path) => path.startsWith('pipeline request > token'))).toHaveLength(3);
  });

  it('record a lease of the host', async () => {
    const { manager, tracing, tracer, timeline, paths } = observed();
    const lease = await manager.acquirePipeline('a');
    tracing.withSpan(lease, () => tracer.startSpan('by hand').end());
    await manager.releasePipeline(lease);
    await manager.shutdown();
    expect(paths()).toContain('pipeline request > by hand');
    expect(timeline.toJSON().requests).toMatchObject([{ taskId: 'a', outcome: 'ok' }]);
  });
});
