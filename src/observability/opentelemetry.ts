import {
  type Context,
  context,
  createContextKey,
  metrics,
  type Span,
  SpanKind,
  SpanStatusCode,
  type Tracer,
  trace,
} from '@opentelemetry/api';
import type { TaskIds } from '../hooks/events.js';
import type { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { callable, optional, options as readOptions, refusal, wholeNumber } from '../internal/validate.js';
import { Attachment } from './attachment.js';
import { type MeterLike, measureWith } from './otel-metrics.js';
import {
  RequestSpans,
  type SpanAttributes,
  type SpanFailure,
  type SpanScope,
  type SpanStart,
  type TracePort,
} from './request-spans.js';

export type { MeterLike } from './otel-metrics.js';

/** What is needed of an OpenTelemetry `Tracer`. */
export interface TracerLike {
  startSpan(name: string, options?: object, context?: object): object;
}

/** Options of `traceTo`. */
export interface TraceOptions {
  /** @default the global provider's tracer `pipeline-pool` */
  readonly tracer?: TracerLike;
  /** @default the global provider's meter `pipeline-pool` */
  readonly meter?: MeterLike;
  /**
   * How many spans may be open at once; the oldest is ended to make room for another.
   * @default 10000
   */
  readonly maxOpenSpans?: number;
}

/** Tracing that goes on. Made by `traceTo`. */
export interface Tracing extends Disposable {
  /**
   * Runs work so that the spans it starts become children of its request's span, or without a manager of its lease's. An
   * async generator that the work returns runs so for as long as it is iterated.
   *
   * @param ids what a manager gives the work, or a lease with a `taskId`; where nothing is known of it the work simply runs
   * @returns what the work returns
   * @example
   * manager.run(taskId, (request) => tracing.withSpan(request, () => research(request.pipeline)));
   */
  withSpan<R>(ids: { readonly requestId?: string; readonly taskId?: string | undefined }, work: () => R): R;
  /** Ends the tracing, and the spans that are open. */
  stop(): void;
}

/**
 * Tells OpenTelemetry what the hooks tell: as spans (request, waits, lease, tool calls, calls, attempts) and as metrics.
 * Needs `@opentelemetry/api`, an optional peer, and an SDK that the host has set up.
 *
 * @throws TypeError or RangeError for a wrong option
 * @example
 * const tracing = traceTo(manager.hooks);
 * const answer = await manager.run(taskId, (request) =>
 *   tracing.withSpan(request, () => research(request.pipeline, question)),
 * );
 */
export function traceTo(hooks: LifecycleHooks, options: TraceOptions = {}): Tracing {
  readOptions('traceTo', options, ['tracer', 'meter', 'maxOpenSpans']);
  const tracer = optional('tracer', options.tracer, tracerOf) ?? trace.getTracer('pipeline-pool');
  const meter = optional('meter', options.meter, meterOf) ?? metrics.getMeter('pipeline-pool');
  const maxSpans = optional('maxOpenSpans', options.maxOpenSpans, wholeNumber) ?? 10_000;
  const attachment = new Attachment(hooks);
  const spans = new RequestSpans(new OpenTelemetryPort(tracer as Tracer), maxSpans);
  spans.listen(attachment);
  measureWith(meter, attachment);
  const stop = (): void => {
    attachment.detach();
    spans.endAll();
  };
  return {
    stop,
    [Symbol.dispose]: stop,
    withSpan: (ids: TaskIds, work) => {
      callable('work', work);
      const scope = spans.scopeOf(ids);
      return scope === undefined ? work() : runWithin(scope.context, work);
    },
  };
}

/** Marks the contexts that lie within a scope's own. */
const SCOPE = createContextKey('pipeline-pool scope');

class OpenTelemetryPort implements TracePort<Context> {
  readonly #tracer: Tracer;

  constructor(tracer: Tracer) {
    this.#tracer = tracer;
  }

  active(): Context {
    return context.active();
  }

  isWithin(scope: SpanScope<Context>): boolean {
    return context.active().getValue(SCOPE) === scope;
  }

  start(name: string, { attributes, client, agoMs }: SpanStart, parent: Context): SpanScope<Context> {
    const kind = client === true ? SpanKind.CLIENT : SpanKind.INTERNAL;
    const started = agoMs === undefined || agoMs === 0 ? {} : { startTime: Date.now() - agoMs };
    const span = this.#tracer.startSpan(name, { kind, attributes: { ...attributes }, ...started }, parent);
    return new SpanInContext(span, parent);
  }
}

class SpanInContext implements SpanScope<Context> {
  readonly context: Context;
  readonly #span: Span;

  constructor(span: Span, parent: Context) {
    this.#span = span;
    this.context = trace.setSpan(parent, span).setValue(SCOPE, this);
  }

  set(attributes: SpanAttributes): void {
    this.#span.setAttributes({ ...attributes });
  }

  event(name: string, attributes: SpanAttributes): void {
    this.#span.addEvent(name, { ...attributes });
  }

  end(failure?: SpanFailure): void {
    if (failure !== undefined) {
      const { error, type } = failure;
      this.#span.setAttribute('error.type', codeOf(error) ?? type);
      this.#span.setStatus({
        code: SpanStatusCode.ERROR,
        message: error instanceof Error ? error.message : type,
      });
      if (error instanceof Error) this.#span.recordException(error);
    }
    this.#span.end();
  }
}

const codeOf = (error: unknown): string | undefined => {
  if (!(error instanceof Error)) return undefined;
  const { code } = error as { readonly code?: unknown };
  return typeof code === 'string' ? code : error.name;
};

/** Runs work in a context; each step of a generator that it returns as well, since those run in their caller's. */
function runWithin<R>(within: Context, work: () => R): R {
  const answer = context.with(within, work);
  if (!isAsyncGenerator(answer)) return answer;
  const bound: AsyncGenerator = {
    next: (...args) => context.with(within, () => answer.next(...args)),
    return: (value) => context.with(within, () => answer.return(value)),
    throw: (error) => context.with(within, () => answer.throw(error)),
    [Symbol.asyncIterator]: () => bound,
    [Symbol.asyncDispose]: async () => void (await bound.return(undefined)),
  };
  return bound as R;
}

// Precisely those: another iterable may have methods of its own, which a stand-in would lack.
const isAsyncGenerator = (value: unknown): value is AsyncGenerator =>
  Object.prototype.toString.call(value) === '[object AsyncGenerator]';

const tracerOf = (option: string, value: TracerLike): TracerLike => {
  if (typeof value?.startSpan !== 'function') throw new TypeError(refusal(option, 'a Tracer', value));
  return value;
};

const meterOf = (option: string, value: MeterLike): MeterLike => {
  if (typeof value?.createHistogram !== 'function') throw new TypeError(refusal(option, 'a Meter', value));
  return value;
};
