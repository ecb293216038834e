import { GateTimeoutError, PipelinePoolError } from '../errors.js';
import { boundedCall, linkedController } from '../internal/abort.js';
import { CheckedIterator } from '../internal/iteration.js';
import { fieldAt, fieldOf } from '../internal/redaction.js';
import {
  callable,
  durationMs,
  oneOf,
  optional,
  options,
  synchronous,
  text,
  wholeNumber,
} from '../internal/validate.js';
import type { Budget } from '../request/budget.js';
import { currentRequest } from '../request/current-request.js';
import type { AttemptContext } from './attempt.js';
import type { Work } from './call.js';
import { judgeStatus, type Observed, type OutcomeJudgement, withBodyTime } from './classify.js';
import { FetchRequest, type GateFetchRequest } from './fetch-request.js';
import { type CachedResponse, isCachedResponse, ResponseSource, responseOfCached } from './fetch-response.js';
import type { GateCallOptions, GateSettings, UsageReader } from './options.js';
import { isErrorStatus, isResponse } from './response-content.js';
import { GateStream, type OpenedStream, type StreamCall } from './stream.js';

/** Options of `gate.fetch`. */
export interface GateFetchOptions {
  /** Makes the requests: that of undici, of `longFetch`, or any other. @default the global `fetch` of this moment */
  // biome-ignore lint/suspicious/noExplicitAny: whichever library it is from, with types of its own
  readonly fetch?: ((input: any, init?: any) => Promise<any>) | undefined;
  /**
   * Puts the key of an attempt into its headers, over the client's own; required if the gate has keys.
   * @default none; the client's own key is sent
   */
  readonly authorize?: ((headers: Headers, key: string) => void) | undefined;
  /** The options of a call, by its request. @default none */
  readonly options?: ((request: GateFetchRequest) => GateCallOptions | undefined) | undefined;
  /**
   * Reads from the JSON of a response, or of an event of a stream, what the call weighed. A JSON body of more than 4 MiB is
   * not read. @default the gate's `usage`
   */
  readonly usage?: UsageReader | undefined;
  /** Milliseconds for which a body may stay unread; then it is cancelled. @default 60_000 */
  readonly bodyIdleTimeoutMs?: number | undefined;
  /**
   * How many bytes of a body that can be read only once (a stream) are kept for another attempt; a call with a longer
   * one has one attempt. @default 1_048_576
   */
  readonly maxReplayBytes?: number | undefined;
  /**
   * What a call that the gate itself rejects gets: a `Response` with 429, 503 or 504, since clients wrap or retry what `fetch`
   * throws; or the typed error. @default 'response'
   */
  readonly rejections?: 'response' | 'throw' | undefined;
}

/** `Authorization: Bearer` with the key of the attempt, as OpenAI and most others take it. */
export const bearer = (headers: Headers, key: string): void => headers.set('authorization', `Bearer ${key}`);

/**
 * Puts the key of the attempt into a header of this name.
 *
 * @throws {TypeError} when it is no name of a header
 *
 * @example
 * const anthropic = new Anthropic({ apiKey: 'unused', maxRetries: 0, fetch: gate.fetch({ authorize: apiKeyHeader('x-api-key') }) });
 */
export function apiKeyHeader(name: string): (headers: Headers, key: string) => void {
  new Headers().set(text('name', name), '');
  return (headers, key) => headers.set(name, key);
}

/** How a gate makes the calls of its `fetch`. */
export interface FetchCalls {
  /** Checks the options of a call, and adds those of the current request. */
  check(given: GateCallOptions): GateCallOptions;
  /** Estimates what a call weighs, from the JSON body of its request, where a window or its budget counts that. */
  estimate(json: () => unknown, budget: Budget | undefined): number | undefined;
  /** Begins a call that returns a stream. */
  begin<T>(options: GateCallOptions, work: Work<OpenedStream<T>>): StreamCall<T>;
  /** Makes a call that returns a complete result, through the cache. */
  answer<R>(options: GateCallOptions, work: Work<R>): Promise<R>;
}

/** Bodies whose reader may be garbage-collected before their end. */
const unreadBodies = /* @__PURE__ */ new FinalizationRegistry((stream: GateStream<ResponsePart>) => {
  stream.return().catch(() => {});
});

/** See `ServiceGate.fetch`. */
export function gatedFetch(
  given: GateFetchOptions,
  settings: GateSettings,
  calls: FetchCalls,
): typeof globalThis.fetch {
  options('fetch', given, [
    'fetch',
    'authorize',
    'options',
    'usage',
    'bodyIdleTimeoutMs',
    'maxReplayBytes',
    'rejections',
  ]);
  const fetch: typeof globalThis.fetch = callable('fetch', given.fetch ?? globalThis.fetch);
  const authorize = optional('authorize', given.authorize, callable);
  if (settings.keyed) callable('authorize (the gate has keys)', authorize);
  const optionsOf = optional('options', given.options, callable);
  const readUsage = optional('usage', given.usage, callable) ?? settings.usage;
  const idleMs = durationMs('bodyIdleTimeoutMs', given.bodyIdleTimeoutMs ?? 60_000, 1);
  const maxReplayBytes = wholeNumber('maxReplayBytes', given.maxReplayBytes ?? 1_048_576, 0);
  const rejections = oneOf('rejections', given.rejections ?? 'response', ['response', 'throw']);

  /** One attempt, until its call can be classified. */
  const send = async (
    request: FetchRequest,
    context: AttemptContext,
    { budget }: GateCallOptions,
  ): Promise<ResponseSource> => {
    const { key, signal } = context;
    const init = request.init(signal, (headers) => {
      if (key !== '') synchronous('authorize', authorize?.(headers, key));
    });
    const response: unknown = await fetch(request.url, init);
    if (!isResponse(response)) throw new TypeError('Expected `fetch` to return a Response');
    const isRead =
      readUsage !== undefined ||
      settings.adaptive !== undefined ||
      (budget !== undefined && settings.cost?.actual !== undefined);
    return ResponseSource.open(response, readUsage, isRead);
  };

  const stream = async (
    request: FetchRequest,
    callOptions: GateCallOptions,
    isEstimated: boolean,
    onOver: () => void,
  ): Promise<Response> => {
    const idle = idleTimer(idleMs, () => body.abort(new GateTimeoutError(settings.name, 'body', idleMs)));
    const over = (): void => {
      idle.end();
      unreadBodies.unregister(body);
      onOver();
    };
    let source: ResponseSource | undefined;
    const body = new GateStream<ResponsePart>(
      (work) => {
        const begun = calls.begin(callOptions, work);
        return {
          ...begun,
          onOpen: () => begun.context.liftDeadline(),
          onEnd: (attempt) => source?.readUsage(attempt),
          finish: (failure) => {
            over();
            begun.finish(failure);
          },
        };
      },
      {
        ...workOf(request, isEstimated),
        keepsAttempt: true,
        run: async (context): Promise<OpenedResponse> => {
          const source = await send(request, context, callOptions);
          const iterator = CheckedIterator.of(source, 'the response', 'an async iterator');
          return { source, iterator, first: { value: source } };
        },
        observe: ({ source }: OpenedResponse) => source.observe(),
        headersOf: ({ source }: OpenedResponse) => source.headers,
        readUsage: ({ source }: OpenedResponse, attempt) => source.readFirstUsage(attempt),
        discard: ({ iterator }) => iterator.return(),
      },
    );
    try {
      source = (await body.next()).value as ResponseSource;
      const whole = source.whole();
      if (whole === undefined) return source.withBody(readableOf(body, idle));
      await body.return();
      return whole;
    } catch (error) {
      // The inner `fetch` may have returned something of which no Response can be made.
      await body.return();
      // The gate may have rejected the call before it began.
      over();
      throw error;
    }
  };

  const cached = async (
    request: FetchRequest,
    callOptions: GateCallOptions,
    isEstimated: boolean,
  ): Promise<Response> => {
    let source: ResponseSource;
    const response = await calls.answer<CachedResponse>(callOptions, {
      ...workOf(request, isEstimated),
      run: async (context) => {
        const sent = await send(request, context, callOptions);
        const read = await sent.read();
        // An attempt that was given up may come to its end during the next one.
        context.signal.throwIfAborted();
        source = sent;
        return read;
      },
      observe: () => source.observe(),
      headersOf: () => source.headers,
      readUsage: (_, attempt) => {
        source.readUsage(attempt);
        attempt.settleUsage();
      },
      acceptsStored: isCachedResponse,
      discard: () => {},
    });
    return responseOfCached(response);
  };

  const call = async (request: FetchRequest): Promise<Response> => {
    const { signals } = request;
    if (request.isToBeRead) {
      const { controller, unlink } = linkedController(...signals);
      const { timeoutMs } = settings;
      await boundedCall(() => request.read(), {
        signal: controller.signal,
        timeoutMs,
        timeoutError: (ms) => new GateTimeoutError(settings.name, 'call', ms),
      }).finally(unlink);
    }
    const chosen = calls.check(synchronous('options', optionsOf?.(request)) ?? {});
    if (chosen.signal !== undefined) signals.push(chosen.signal);
    const { controller, unlink } = linkedController(...signals);
    const weight = chosen.weight ?? calls.estimate(() => request.json, chosen.budget);
    const callOptions = { ...chosen, weight, signal: controller.signal };
    const isEstimated = chosen.weight === undefined;
    const over = (): void => {
      unlink();
      request.end();
    };
    return chosen.cacheKey === undefined
      ? stream(request, callOptions, isEstimated, over)
      : cached(request, callOptions, isEstimated).finally(over);
  };

  return async (input, init) => {
    // These reach no service. Clients use them to find out which `fetch` they have.
    if (/^(data|blob):/i.test(String(input))) return fetch(input, init);
    const request = new FetchRequest(input, init, maxReplayBytes);
    const own = currentRequest()?.signal;
    if (own !== undefined) request.signals.push(own);
    try {
      return await call(request);
    } catch (error) {
      request.end();
      const isReason = request.signals.some(({ aborted, reason }) => aborted && reason === error);
      if (rejections === 'throw' || isReason || !(error instanceof PipelinePoolError)) throw error;
      return rejectionOf(error);
    }
  };
}

/** What each attempt of a call begins with: its response, and then the chunks of its body. */
type ResponsePart = ResponseSource | Uint8Array<ArrayBuffer>;

interface OpenedResponse extends OpenedStream<ResponsePart> {
  readonly source: ResponseSource;
}

/** What the work of every call has. */
const workOf = (request: FetchRequest, isEstimated: boolean) => ({
  isEstimated,
  url: request.url,
  judge: judgeFirstEvent,
  isRepeatable: () => request.isRepeatable,
});

/** Calls `onIdle` when the body of a response has not been read for so long. It keeps no process alive. */
function idleTimer(ms: number, onIdle: () => void) {
  let timer: NodeJS.Timeout | undefined;
  let hasEnded = false;
  const stop = (): void => clearTimeout(timer);
  return {
    start(): void {
      if (hasEnded) return;
      timer = setTimeout(onIdle, ms);
      timer.unref?.();
    },
    stop,
    /** Stops it for good. */
    end(): void {
      hasEnded = true;
      stop();
    },
  };
}

/**
 * The body that a client reads. The service is read only while its reader waits. Nothing else refers to it, so that it can
 * be garbage-collected while its call is in progress.
 */
function readableOf(
  parts: GateStream<ResponsePart>,
  idle: ReturnType<typeof idleTimer>,
): ReadableStream<Uint8Array> {
  const body = new ReadableStream({
    type: 'bytes',
    async pull(controller) {
      idle.stop();
      const { done, value } = await parts.next();
      if (done) {
        controller.close();
        controller.byobRequest?.respond(0);
      } else {
        controller.enqueue(value as Uint8Array<ArrayBuffer>);
        idle.start();
      }
    },
    async cancel() {
      await parts.return();
    },
  });
  idle.start();
  unreadBodies.register(body, parts, parts);
  return body;
}

/** Several services open a stream with 200, and report a failure in its first event. */
function judgeFirstEvent(observed: Observed): OutcomeJudgement | undefined {
  if (observed.kind !== 'first-item') return undefined;
  const { value } = observed;
  const error = fieldOf(value, 'error');
  if (error === undefined || error === null || error === '') return undefined;
  const status = ['error.status', 'error.code', 'status', 'code']
    .map((path) => Number(fieldAt(value, path)))
    .find(isErrorStatus);
  return status === undefined ? { class: 'retryable' } : withBodyTime(judgeStatus(status), value);
}

const TOO_MANY: readonly string[] = [
  'ERR_KEYS_EXHAUSTED',
  'ERR_QUEUE_FULL',
  'ERR_BUDGET_EXCEEDED',
  'ERR_DEADLINE_UNMEETABLE',
];

/** The response of a gate that rejects a call. SDKs read from it that another attempt makes no sense. */
function rejectionOf(error: PipelinePoolError): Response {
  const { code, message } = error;
  const status = TOO_MANY.includes(code) ? 429 : code.endsWith('_TIMEOUT') ? 504 : 503;
  const afterMs = fieldOf(error, 'retryAfterMs');
  const seconds = Math.max(1, Math.ceil(typeof afterMs === 'number' ? afterMs / 1_000 : 1));
  return new Response(JSON.stringify({ error: { message, type: 'pipeline_pool', code } }), {
    status,
    headers: {
      'content-type': 'application/json',
      'retry-after': String(seconds),
      'x-should-retry': 'false',
    },
  });
}
