/**
 * Lifecycle events as OpenTelemetry spans and metrics. `opentelemetry.ts` has `traceTo` and `withSpan`; `request-spans.ts`
 * turns events into spans; the metrics are in `../metrics/otel-metrics.ts`.
 *
 * @module pipeline-pool/opentelemetry
 */

import { type Context, context, type Meter, metrics, type Tracer, trace } from '@opentelemetry/api';
import { Attachment } from '../../hooks/attachment.js';
import type { TaskIds } from '../../hooks/events.js';
import type { LifecycleHooks } from '../../hooks/lifecycle-hooks.js';
import { type Checks, callable, checkEach, refusal, wholeNumber } from '../../internal/validate.js';
import { Measurements } from '../metrics/measurements.js';
import { type MeterLike, OtelMetrics } from '../metrics/otel-metrics.js';
import { MEASURED_CHECKS, type MeasuredOptions } from '../metrics/sources.js';
import { RequestSpans } from './request-spans.js';

/** The version of the package, as in package.json. */
const VERSION = '0.1.0';

export type { MeterLike } from '../metrics/otel-metrics.js';
export type { MetricsSources } from '../metrics/sources.js';

/** The method of an OpenTelemetry `Tracer` that `traceTo` calls. */
export interface TracerLike {
  startSpan(name: string, options?: object, context?: object): object;
}

/** Options of `traceTo`. */
export interface TraceOptions extends MeasuredOptions {
  /**
   * Creates the spans.
   * @default the global provider's tracer `pipeline-pool`
   */
  readonly tracer?: TracerLike | undefined;
  /**
   * Creates the metric instruments.
   * @default the global provider's meter `pipeline-pool`
   */
  readonly meter?: MeterLike | undefined;
  /**
   * Maximum number of open spans; the oldest is ended to make room for a new one.
   * @default 10000
   */
  readonly maxOpenSpans?: number | undefined;
}

/** Active tracing, returned by `traceTo`. */
export interface Tracing extends Disposable {
  /**
   * Runs `work` in the context of its request's span or, without a manager, of its lease's span, so that spans started
   * by it become their children. If `work` returns an async generator, each of its steps runs in that context.
   *
   * @param ids a manager's request, or a lease with a `taskId`; without a span of these ids, `work` runs as is
   * @returns the result of `work`
   * @example
   * manager.run(taskId, (request) => tracing.withSpan(request, () => research(request.pipeline)));
   */
  withSpan<R>(
    ids: { readonly requestId?: string | undefined; readonly taskId?: string | undefined },
    work: () => R,
  ): R;
  /** Removes the listeners and ends all open spans. */
  stop(): void;
}

const TRACE_CHECKS: Checks<TraceOptions> = {
  ...MEASURED_CHECKS,
  tracer: (option, value) => {
    if (typeof (value as TracerLike)?.startSpan !== 'function')
      throw new TypeError(refusal(option, 'a Tracer', value));
  },
  meter: (option, value) => {
    if (typeof (value as MeterLike)?.createHistogram !== 'function')
      throw new TypeError(refusal(option, 'a Meter', value));
  },
  maxOpenSpans: wholeNumber,
};

/**
 * Exports lifecycle events to OpenTelemetry: as spans (request, waits, lease, tool calls, calls, attempts) and as metrics.
 * Requires `@opentelemetry/api`, an optional peer dependency, and an SDK set up by the host.
 *
 * In spans and metrics `error.type` is the error's code; an aborted operation is no error.
 *
 * @throws {TypeError | RangeError} for an invalid option, naming the option and the value
 * @example
 * const tracing = traceTo(manager.hooks);
 * const answer = await manager.run(taskId, (request) =>
 *   tracing.withSpan(request, () => research(request.pipeline, question)),
 * );
 */
export function traceTo(hooks: LifecycleHooks, options: TraceOptions = {}): Tracing {
  const {
    tracer = trace.getTracer('pipeline-pool', VERSION),
    meter = metrics.getMeter('pipeline-pool', VERSION),
    maxOpenSpans = 10_000,
  } = checkEach('traceTo', options, TRACE_CHECKS);
  const attachment = new Attachment(hooks);
  const spans = new RequestSpans(tracer as Tracer, maxOpenSpans);
  spans.listen(attachment);
  const instruments = new OtelMetrics(meter as Meter);
  instruments.listen(attachment, new Measurements(options));
  const stop = (): void => {
    attachment.detach();
    instruments.stop();
    spans.endAll();
  };
  return {
    stop,
    [Symbol.dispose]: stop,
    withSpan: (ids: TaskIds, work) => {
      callable('work', work);
      const within = spans.contextOf(ids);
      return within === undefined ? work() : runWithin(within, work);
    },
  };
}

/** Runs work in a context. The steps of a generator that it returns would otherwise run in their caller's context. */
function runWithin<R>(within: Context, work: () => R): R {
  const result = context.with(within, work);
  if (!isAsyncGenerator(result)) return result;
  const bound: AsyncGenerator = {
    next: (...args) => context.with(within, () => result.next(...args)),
    return: (value) => context.with(within, () => result.return(value)),
    throw: (error) => context.with(within, () => result.throw(error)),
    [Symbol.asyncIterator]: () => bound,
    [Symbol.asyncDispose]: async () => void (await bound.return(undefined)),
  };
  return bound as R;
}

// Only native generators: another iterable may have methods of its own, which the wrapper would lack.
const isAsyncGenerator = (value: unknown): value is AsyncGenerator =>
  Object.prototype.toString.call(value) === '[object AsyncGenerator]';
