import type { GateEvents, LifecycleEvents, TaskIds } from '../hooks/events.js';
import type { Attachment } from './attachment.js';

/** The values a span can carry; what is undefined is left out. */
export type SpanAttributes = Readonly<Record<string, string | number | boolean | undefined>>;

/** What went wrong: a word for it, and the error where there is one. */
export interface SpanFailure {
  readonly type: string;
  readonly error?: unknown;
}

/** A span that goes on, and the context in which others become its children. */
export interface SpanScope<C> {
  readonly context: C;
  set(attributes: SpanAttributes): void;
  event(name: string, attributes: SpanAttributes): void;
  end(failure?: SpanFailure): void;
}

/** How a span begins. */
export interface SpanStart {
  readonly attributes: SpanAttributes;
  /** It is a call to a service elsewhere. */
  readonly client?: boolean;
  /** It began so many milliseconds ago. */
  readonly agoMs?: number;
}

/** What the spans of requests need of a tracer, whose contexts are `C`. */
export interface TracePort<C> {
  active(): C;
  /** Whether the active context lies in that of `scope`. */
  isWithin(scope: SpanScope<C>): boolean;
  start(name: string, start: SpanStart, parent: C): SpanScope<C>;
}

interface Told extends TaskIds {
  readonly source: string;
}

interface Opened<C> {
  readonly scope: SpanScope<C>;
  /** The task whose work is done under this span. */
  readonly taskId?: string | undefined;
  attempt?: SpanScope<C> | undefined;
}

type CallEvent = GateEvents['call:started' | 'call:retried' | 'call:throttled' | 'call:finished'];

/** A shorter wait is no span of its own. */
const SHORTEST_WAIT_MS = 1;

/**
 * Makes spans of events: a request with its waits, its lease, its tool calls, its calls and their attempts.
 *
 * Invariants:
 * - A span's parent is found by the ids that its event carries, so what waited in a queue stays with its request. Where
 *   the active context lies within that parent it is taken instead, as it says more.
 * - At most `maxSpans` spans are open, attempts not counted; the oldest is ended to make room for another.
 */
export class RequestSpans<C> {
  readonly #port: TracePort<C>;
  readonly #maxSpans: number;
  readonly #open = new Map<string, Opened<C>>();
  /** By task, the spans under which its work is done, the innermost last. */
  readonly #tasks = new Map<string, Opened<C>[]>();

  constructor(port: TracePort<C>, maxSpans: number) {
    this.#port = port;
    this.#maxSpans = maxSpans;
  }

  listen(attachment: Attachment): void {
    attachment
      .on('request:queued', (p) => this.#begin(`request ${p.requestId}`, 'pipeline request', p, p.taskId))
      .on('request:started', (p) => this.#started(p))
      .on('request:finished', (p) => this.#end(`request ${p.requestId}`, ended(p.outcome), failed(p)))
      .on('request:rejected', (p) => this.#end(`request ${p.requestId}`, ended(p.outcome), failed(p)))

      .on('permit:queued', (p) => this.#waits('permit', 'pipeline admission', p))
      .on('permit:acquired', (p) => this.#permitAcquired(p))
      .on('permit:released', (p) => this.#end(`permit ${p.source} ${who(p)}`))
      .on('permit:rejected', (p) => this.#waited('permit', 'pipeline admission', p, p.reason))

      .on('lease:queued', (p) => this.#waits('lease', 'pipeline wait', p))
      .on('lease:acquired', (p) => this.#leaseAcquired(p))
      .on('lease:released', (p) => this.#end(leaseKey(p), { 'pipeline_pool.lease.discarded': p.discarded }))
      .on('lease:revoked', (p) => this.#end(leaseKey(p), {}, { type: p.reason }))
      .on('lease:leaked', (p) => this.#open.get(leaseKey(p))?.scope.event('leak', { kind: p.kind }))
      .on('lease:rejected', (p) => this.#waited('lease', 'pipeline wait', p, p.reason))

      .on('tool:started', (p) => this.#toolStarted(p))
      .on('tool:finished', (p) => this.#end(toolKey(p), ended(p.outcome), failed(p)))

      .on('call:throttled', (p) => {
        this.#call(p, 0).scope.event('throttled', { reason: p.reason, wait_ms: p.waitMs });
      })
      .on('call:started', (p) => this.#callStarted(p))
      .on('call:retried', (p) => this.#callRetried(p))
      .on('call:finished', (p) => this.#callFinished(p));
  }

  /** Under what the work of a request, or without a manager that of a task, is done. */
  scopeOf({ requestId, taskId }: TaskIds): SpanScope<C> | undefined {
    const request = requestId === undefined ? undefined : this.#open.get(`request ${requestId}`);
    const innermost = taskId === undefined ? undefined : this.#tasks.get(taskId)?.at(-1);
    return (request ?? innermost)?.scope;
  }

  /** Ends whatever is open. */
  endAll(): void {
    for (const key of [...this.#open.keys()]) this.#end(key);
  }

  #started({ requestId, instanceId }: LifecycleEvents['request:started']): void {
    this.#open.get(`request ${requestId}`)?.scope.set({ 'pipeline_pool.instance.id': instanceId });
  }

  #permitAcquired(p: LifecycleEvents['permit:acquired']): void {
    this.#waited('permit', 'pipeline admission', p);
    // A manager's request tells the same, and without a task nothing says which release belongs to it.
    if (this.#isManaged(p) || p.taskId === undefined) return;
    this.#begin(`permit ${p.source} ${who(p)}`, 'pipeline permit', p, p.taskId);
  }

  #leaseAcquired(p: LifecycleEvents['lease:acquired']): void {
    this.#waited('lease', 'pipeline wait', p);
    const attributes = { 'pipeline_pool.instance.id': p.instanceId };
    this.#begin(leaseKey(p), 'pipeline lease', p, this.#isManaged(p) ? undefined : p.taskId, { attributes });
  }

  #waits(kind: 'permit' | 'lease', name: string, p: Told): void {
    // Without a name nothing says which of those who wait is served: the span is made when it is known how long it was.
    if (who(p) !== '') this.#begin(waitKey(kind, p), name, p);
  }

  /** Ends a wait; one that was not heard from its beginning becomes a span now, if it was one. */
  #waited(kind: 'permit' | 'lease', name: string, p: Told & { waitMs: number }, rejection?: string): void {
    const key = waitKey(kind, p);
    if (!this.#open.has(key)) {
      if (p.waitMs < SHORTEST_WAIT_MS && rejection === undefined) return;
      this.#begin(key, name, p, undefined, { attributes: {}, agoMs: p.waitMs });
    }
    const failure = rejection === undefined || rejection === 'aborted' ? undefined : { type: rejection };
    this.#end(key, rejection === undefined ? {} : ended(rejection), failure);
  }

  #toolStarted(p: LifecycleEvents['tool:started']): void {
    const attributes = {
      'gen_ai.operation.name': 'execute_tool',
      'gen_ai.tool.name': p.tool,
      'pipeline_pool.instance.id': p.instanceId,
    };
    this.#begin(toolKey(p), `execute_tool ${p.tool}`, p, undefined, { attributes });
  }

  #call(p: CallEvent, agoMs: number): Opened<C> {
    const key = callKey(p);
    return (
      this.#open.get(key) ?? this.#begin(key, `call ${p.source}`, p, undefined, { attributes: {}, agoMs })
    );
  }

  #callStarted(p: LifecycleEvents['call:started']): void {
    const call = this.#call(p, p.waitMs);
    call.attempt?.end();
    const attributes = {
      ...idsOf(p),
      'pipeline_pool.attempt': p.attempt,
      'pipeline_pool.key': p.key,
      // The convention counts what came after the first.
      'http.request.resend_count': p.attempt > 1 ? p.attempt - 1 : undefined,
    };
    call.attempt = this.#port.start(`attempt ${p.source}`, { attributes, client: true }, call.scope.context);
  }

  #callRetried(p: LifecycleEvents['call:retried']): void {
    const call = this.#open.get(callKey(p));
    call?.attempt?.set({ 'http.response.status_code': p.status });
    call?.attempt?.end({ type: p.status === undefined ? p.class : String(p.status) });
    if (call !== undefined) call.attempt = undefined;
    call?.scope.event('retry', { class: p.class, delay_ms: p.delayMs });
  }

  #callFinished(p: LifecycleEvents['call:finished']): void {
    const call = this.#call(p, p.durationMs);
    call.attempt?.end(failed(p));
    call.attempt = undefined;
    this.#end(
      callKey(p),
      {
        ...ended(p.outcome),
        'pipeline_pool.attempts': p.attempts,
        'pipeline_pool.cache': p.cache,
        'pipeline_pool.wait_ms': p.waitMs,
      },
      failed(p),
    );
  }

  #isManaged({ requestId }: TaskIds): boolean {
    return requestId !== undefined && this.#open.has(`request ${requestId}`);
  }

  /** `taskId` is that of a task whose further work is done under this span. */
  #begin(
    key: string,
    name: string,
    told: Told & { readonly toolCallId?: number },
    taskId?: string,
    start: SpanStart = { attributes: {} },
  ): Opened<C> {
    this.#end(key);
    if (this.#open.size >= this.#maxSpans) this.#endOldest();
    const attributes = { ...idsOf(told), ...start.attributes };
    const scope = this.#port.start(name, { ...start, attributes }, this.#parentOf(told));
    const opened: Opened<C> = { scope, taskId };
    this.#open.set(key, opened);
    if (taskId !== undefined) this.#tasks.set(taskId, [...(this.#tasks.get(taskId) ?? []), opened]);
    return opened;
  }

  #parentOf(told: Told & { readonly toolCallId?: number }): C {
    const tool = told.toolCallId === undefined ? undefined : this.#open.get(toolKey(told));
    const scope = tool?.scope ?? this.scopeOf(told);
    if (scope === undefined || this.#port.isWithin(scope)) return this.#port.active();
    return scope.context;
  }

  #end(key: string, attributes: SpanAttributes = {}, failure?: SpanFailure): void {
    const opened = this.#open.get(key);
    if (opened === undefined) return;
    this.#open.delete(key);
    opened.attempt?.end();
    opened.scope.set(attributes);
    opened.scope.end(failure);
    if (opened.taskId === undefined) return;
    const left = this.#tasks.get(opened.taskId)?.filter((other) => other !== opened) ?? [];
    if (left.length === 0) this.#tasks.delete(opened.taskId);
    else this.#tasks.set(opened.taskId, left);
  }

  #endOldest(): void {
    const oldest = this.#open.keys().next();
    if (oldest.done !== true) this.#end(oldest.value, { 'pipeline_pool.forgotten': true });
  }
}

const who = ({ requestId, taskId }: TaskIds): string => requestId ?? taskId ?? '';
const waitKey = (kind: 'permit' | 'lease', p: Told): string => `wait ${kind} ${p.source} ${who(p)}`;
const leaseKey = (p: Told & { instanceId: number }): string => `lease ${p.source} ${p.instanceId}`;
const callKey = (p: CallEvent): string => `call ${p.source} ${p.callId}`;
// A call knows the number of its tool call and its task, but not the tool manager.
const toolKey = (p: TaskIds & { toolCallId?: number }): string => `tool ${who(p)} ${p.toolCallId}`;

const idsOf = ({ source, taskId, requestId, tenant }: Told): SpanAttributes => ({
  'pipeline_pool.source': source,
  'pipeline_pool.task.id': taskId,
  'pipeline_pool.request.id': requestId,
  'pipeline_pool.tenant': tenant,
});

const ended = (outcome: string): SpanAttributes => ({ 'pipeline_pool.outcome': outcome });

/** A caller who left is no failure. */
const failed = ({ outcome, error }: { readonly outcome: string; readonly error?: unknown }) =>
  outcome === 'ok' || outcome === 'aborted' ? undefined : { type: outcome, error };
