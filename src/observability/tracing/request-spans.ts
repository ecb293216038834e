import {
  type Attributes,
  type Context,
  context,
  createContextKey,
  type Span,
  SpanKind,
  SpanStatusCode,
  type Tracer,
  trace,
} from '@opentelemetry/api';
import type { Attachment } from '../../hooks/attachment.js';
import type { GateEvents, LifecycleEvents, TaskIds } from '../../hooks/events.js';
import { describeError } from '../../internal/redaction.js';
import type { Ending } from '../metrics/measurements.js';
import { errorType, isFailure, modelCall } from '../metrics/otel-metrics.js';

/** Attributes that are undefined are omitted. */
type SpanAttributes = Readonly<Record<string, string | number | boolean | undefined>>;

interface Emitted extends TaskIds {
  readonly source: string;
  readonly toolCallId?: number;
}

interface SpanStart {
  /** @default INTERNAL */
  readonly kind?: SpanKind;
  readonly attributes?: SpanAttributes;
  /** How long ago the span started. */
  readonly agoMs?: number;
  /** The task whose further spans become children of this one. */
  readonly taskId?: string | undefined;
}

interface OpenSpan {
  readonly span: Span;
  /** The context whose spans become children of this one. */
  readonly context: Context;
  readonly taskId: string | undefined;
  attempt?: Span | undefined;
}

type CallEvent = GateEvents['call:started' | 'call:retried' | 'call:throttled' | 'call:finished'];

/** The names of the spans of waits. */
const WAITS = { permit: 'pipeline admission', lease: 'pipeline wait' } as const;
/** A shorter wait gets no span of its own. */
const SHORTEST_WAIT_MS = 1;

/**
 * Creates spans from lifecycle events: a request with its waits, its lease, its tool calls, its calls and their attempts.
 *
 * Invariants:
 * - The parent of a span is found by the ids in its event, so a request keeps its trace while it is queued. If the active
 *   context lies within that parent, it is used instead, because it is more specific.
 * - At most `maxSpans` spans are open, not counting attempts; the oldest is ended to make room for a new one.
 */
export class RequestSpans {
  readonly #tracer: Tracer;
  readonly #maxSpans: number;
  /** Marks the contexts that lie within an open span. */
  readonly #within = createContextKey('pipeline-pool open span');
  readonly #open = new Map<string, OpenSpan>();
  /** By task, the spans that are parents of its further spans, the innermost last. */
  readonly #tasks = new Map<string, OpenSpan[]>();

  constructor(tracer: Tracer, maxSpans: number) {
    this.#tracer = tracer;
    this.#maxSpans = maxSpans;
  }

  listen(attachment: Attachment): void {
    attachment
      .on('request:queued', (p) => this.#start(requestKey(p), 'pipeline request', p, { taskId: p.taskId }))
      .on('request:started', (p) =>
        this.#open.get(requestKey(p))?.span.setAttribute('pipeline_pool.instance.id', p.instanceId),
      )
      .on('request:finished', (p) => this.#end(requestKey(p), outcomeOf(p), p))
      .on('request:rejected', (p) => this.#end(requestKey(p), outcomeOf(p), p))

      .on('permit:queued', (p) => this.#waitStarted('permit', p))
      .on('permit:acquired', (p) => this.#permitAcquired(p))
      .on('permit:released', (p) => this.#end(permitKey(p)))
      .on('permit:rejected', (p) => this.#waitEnded('permit', p, p))

      .on('lease:queued', (p) => this.#waitStarted('lease', p))
      .on('lease:acquired', (p) => this.#leaseAcquired(p))
      .on('lease:released', (p) => this.#end(leaseKey(p), { 'pipeline_pool.lease.discarded': p.discarded }))
      .on('lease:revoked', (p) => this.#end(leaseKey(p), {}, { outcome: p.reason }))
      .on('lease:leaked', (p) =>
        this.#open
          .get(leaseKey(p))
          ?.span.addEvent('pipeline_pool.leak', { 'pipeline_pool.leak.kind': p.kind }),
      )
      .on('lease:rejected', (p) => this.#waitEnded('lease', p, p))

      .on('tool:started', (p) => this.#toolStarted(p))
      .on('tool:finished', (p) => this.#end(toolKey(p), outcomeOf(p), p))

      .on('call:throttled', (p) =>
        this.#call(p, 0).span.addEvent('pipeline_pool.throttled', {
          'pipeline_pool.reason': p.reason,
          'pipeline_pool.wait_ms': p.waitMs,
        }),
      )
      .on('call:started', (p) => this.#callStarted(p))
      .on('call:retried', (p) => this.#callRetried(p))
      .on('call:finished', (p) => this.#callFinished(p));
  }

  /** The context for the work of a request or, without a manager, of a task. */
  contextOf(ids: TaskIds): Context | undefined {
    return this.#spanOf(ids)?.context;
  }

  /** Ends all open spans. */
  endAll(): void {
    for (const key of [...this.#open.keys()]) this.#end(key);
  }

  #permitAcquired(p: LifecycleEvents['permit:acquired']): void {
    this.#waitEnded('permit', p);
    // The request's span covers the permit; and without a task id the release could not be matched.
    if (this.#hasRequest(p) || p.taskId === undefined) return;
    this.#start(permitKey(p), 'pipeline permit', p, { taskId: p.taskId });
  }

  #leaseAcquired(p: LifecycleEvents['lease:acquired']): void {
    this.#waitEnded('lease', p);
    this.#start(leaseKey(p), 'pipeline lease', p, {
      attributes: { 'pipeline_pool.instance.id': p.instanceId },
      taskId: this.#hasRequest(p) ? undefined : p.taskId,
    });
  }

  #waitStarted(kind: keyof typeof WAITS, p: Emitted): void {
    // Without ids, the waiter that is served cannot be matched: its span is created at the end of the wait.
    if (idOf(p) !== '') this.#start(waitKey(kind, p), WAITS[kind], p);
  }

  /** Ends a wait. If its start was not observed, its span is created now, unless the wait was too short. */
  #waitEnded(
    kind: keyof typeof WAITS,
    p: Emitted & { readonly waitMs: number },
    rejected?: { readonly reason: string; readonly error: unknown },
  ): void {
    const key = waitKey(kind, p);
    if (!this.#open.has(key)) {
      if (p.waitMs < SHORTEST_WAIT_MS && rejected === undefined) return;
      this.#start(key, WAITS[kind], p, { agoMs: p.waitMs });
    }
    if (rejected === undefined) this.#end(key);
    else {
      const ending = { outcome: rejected.reason, error: rejected.error };
      this.#end(key, outcomeOf(ending), ending);
    }
  }

  #toolStarted(p: LifecycleEvents['tool:started']): void {
    const attributes = {
      'gen_ai.operation.name': 'execute_tool',
      'gen_ai.tool.name': p.tool,
      'gen_ai.tool.type': 'function',
      'gen_ai.tool.call.id': p.modelCallId,
      'pipeline_pool.instance.id': p.instanceId,
    };
    this.#start(toolKey(p), `execute_tool ${p.tool}`, p, { attributes });
  }

  #call(p: CallEvent, agoMs: number): OpenSpan {
    const key = callKey(p);
    return this.#open.get(key) ?? this.#start(key, `call ${p.source}`, p, { kind: SpanKind.CLIENT, agoMs });
  }

  #callStarted(p: LifecycleEvents['call:started']): void {
    const call = this.#call(p, p.waitMs);
    call.attempt?.end();
    if (p.serverAddress !== undefined) call.span.setAttribute('server.address', p.serverAddress);
    const attributes = {
      'pipeline_pool.attempt': p.attempt,
      'pipeline_pool.key': p.key,
      // By convention, the first attempt is not counted.
      'http.request.resend_count': p.attempt > 1 ? p.attempt - 1 : undefined,
      ...idsOf(p),
    };
    // The call with its retries is the CLIENT span; the host's HTTP instrumentation adds one for each attempt.
    const options = { kind: SpanKind.INTERNAL, attributes: attributes as Attributes };
    call.attempt = this.#tracer.startSpan(`attempt ${p.source}`, options, call.context);
  }

  #callRetried(p: LifecycleEvents['call:retried']): void {
    const call = this.#open.get(callKey(p));
    if (call === undefined) return;
    if (p.status !== undefined) call.attempt?.setAttribute('http.response.status_code', p.status);
    endAttempt(call, { outcome: String(p.status ?? p.class) });
    call.span.addEvent('pipeline_pool.retry', {
      'pipeline_pool.outcome': p.class,
      'pipeline_pool.retry_after_ms': p.retryAfterMs,
    });
  }

  #callFinished(p: LifecycleEvents['call:finished']): void {
    const call = this.#call(p, p.durationMs);
    endAttempt(call, p);
    const attributes = {
      'pipeline_pool.attempts': p.attempts,
      'pipeline_pool.cache': p.cache,
      'pipeline_pool.wait_ms': p.waitMs,
      'gen_ai.usage.input_tokens': p.inputTokens,
      'gen_ai.usage.output_tokens': p.outputTokens,
      ...outcomeOf(p),
      ...(p.provider === undefined || p.attempts === 0 ? {} : modelCall(p.provider)),
    };
    this.#end(callKey(p), attributes, p);
  }

  #hasRequest({ requestId }: TaskIds): boolean {
    return requestId !== undefined && this.#open.has(requestKey({ requestId }));
  }

  #start(
    key: string,
    name: string,
    p: Emitted,
    { kind = SpanKind.INTERNAL, attributes, agoMs = 0, taskId }: SpanStart = {},
  ): OpenSpan {
    this.#end(key);
    if (this.#open.size >= this.#maxSpans) this.#endOldest();
    const parent = this.#parentOf(p);
    const options = {
      kind,
      attributes: Object.assign(idsOf(p), attributes) as Attributes,
      ...(agoMs === 0 ? {} : { startTime: Date.now() - agoMs }),
    };
    const span = this.#tracer.startSpan(name, options, parent);
    const marked = trace.setSpan(parent, span).setValue(this.#within, span);
    const open: OpenSpan = { span, context: marked, taskId };
    this.#open.set(key, open);
    if (taskId !== undefined) this.#tasks.set(taskId, [...(this.#tasks.get(taskId) ?? []), open]);
    return open;
  }

  #parentOf(p: Emitted): Context {
    const tool = p.toolCallId === undefined ? undefined : this.#open.get(toolKey(p));
    const parent = tool ?? this.#spanOf(p);
    const active = context.active();
    return parent === undefined || active.getValue(this.#within) === parent.span ? active : parent.context;
  }

  #spanOf({ requestId, taskId }: TaskIds): OpenSpan | undefined {
    const request = requestId === undefined ? undefined : this.#open.get(requestKey({ requestId }));
    return request ?? (taskId === undefined ? undefined : this.#tasks.get(taskId)?.at(-1));
  }

  #end(key: string, attributes: SpanAttributes = {}, ending?: Ending): void {
    const open = this.#open.get(key);
    if (open === undefined) return;
    this.#open.delete(key);
    open.attempt?.end();
    open.span.setAttributes(attributes as Attributes);
    endSpan(open.span, ending);
    if (open.taskId === undefined) return;
    const others = this.#tasks.get(open.taskId)?.filter((other) => other !== open) ?? [];
    if (others.length === 0) this.#tasks.delete(open.taskId);
    else this.#tasks.set(open.taskId, others);
  }

  #endOldest(): void {
    const oldest = this.#open.keys().next();
    if (oldest.done !== true) this.#end(oldest.value, { 'pipeline_pool.forgotten': true });
  }
}

function endAttempt(call: OpenSpan, ending: Ending): void {
  if (call.attempt !== undefined) endSpan(call.attempt, ending);
  call.attempt = undefined;
}

function endSpan(span: Span, { outcome, error }: Ending = { outcome: 'ok' }): void {
  if (isFailure(outcome)) {
    span.setAttribute('error.type', errorType(error, outcome));
    span.setStatus({
      code: SpanStatusCode.ERROR,
      message: error === undefined ? outcome : describeError(error),
    });
    if (error instanceof Error) span.recordException(error);
  }
  span.end();
}

const idOf = ({ requestId, taskId }: TaskIds): string => requestId ?? taskId ?? '';
const requestKey = ({ requestId }: { readonly requestId: string }): string => `request ${requestId}`;
const permitKey = (p: Emitted): string => `permit ${p.source} ${idOf(p)}`;
const waitKey = (kind: keyof typeof WAITS, p: Emitted): string => `wait ${kind} ${p.source} ${idOf(p)}`;
const leaseKey = (p: Emitted & { readonly instanceId: number }): string =>
  `lease ${p.source} ${p.instanceId}`;
const callKey = (p: CallEvent): string => `call ${p.source} ${p.callId}`;
// A call's event has the ids of the tool call and the task, but not the tool manager's name.
const toolKey = (p: TaskIds & { readonly toolCallId?: number }): string => `tool ${idOf(p)} ${p.toolCallId}`;

const idsOf = ({ source, taskId, requestId, tenant }: Emitted): SpanAttributes => ({
  'pipeline_pool.source': source,
  'pipeline_pool.task.id': taskId,
  'pipeline_pool.request.id': requestId,
  'pipeline_pool.tenant': tenant,
});

const outcomeOf = ({ outcome }: Ending): SpanAttributes => ({ 'pipeline_pool.outcome': outcome });
