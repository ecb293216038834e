import type { IncomingHttpHeaders } from 'node:http';
import { callable, durationMs, options, text, wholeNumber } from '../internal/validate.js';
import { Batch, type LlmBatchStats } from './batch.js';
import { goDuration } from './fault.js';
import { defaultReply, LlmAnswer, type LlmReply, type LlmRequest } from './llm-answer.js';
import { json, type StubCall, type StubReply, type StubRoute } from './stub-call.js';
import { countOrUnlimited, type KeyedRate, type RateDecision, rateOf, type StubRate } from './stub-rate.js';
import { type Refusal, STUB_SERVICE_OPTIONS, StubService, type StubServiceOptions } from './stub-service.js';

/** Options of `StubLlm`. Its `latencyMs` is the time to the first event, counted from the entry into the batch. */
export interface StubLlmOptions extends StubServiceOptions {
  /** Milliseconds for each token, added to `latencyMs`. @default 0 */
  readonly perTokenMs?: number;
  /** The reply of the model. @default the same text for the same question */
  readonly reply?: (request: LlmRequest, call: StubCall) => LlmReply | Promise<LlmReply>;
  /** The available models; others get a 404. @default any name */
  readonly models?: readonly string[];
  /** Maximum concurrent calls, like vLLM's `--max-num-seqs`; others are queued, with headers sent if they stream. @default unlimited */
  readonly maxNumSeqs?: number;
  /** Maximum queued calls; a further one gets a 503 at once. @default unlimited, like vLLM */
  readonly maxQueued?: number;
  /** Rate limit per key, like OpenAI's requests per minute; exceeding calls get a 429. @default unlimited */
  readonly rate?: StubRate;
}

/**
 * A stub of an OpenAI-compatible LLM server: chat completions, streamed or not, with the continuous batching of vLLM or
 * SGLang and, optionally, OpenAI's rate limit. The `openai` SDK works with it unchanged.
 *
 * Bodies and headers follow OpenAI's API reference (errors, `x-ratelimit-*`) and vLLM's server (503, `/metrics`).
 *
 * @example
 * const llm = await new StubLlm({ latencyMs: 200, perTokenMs: 10, maxNumSeqs: 8 }).start();
 * const client = new OpenAI({ baseURL: llm.baseUrl, apiKey: 'any', maxRetries: 0 });
 */
export class StubLlm extends StubService {
  protected override readonly routes: readonly StubRoute[] = [
    { method: 'POST', path: '/v1/chat/completions', answer: (call) => this.#chat(call) },
    { method: 'GET', path: '/v1/models', answer: () => this.#listModels() },
    { method: 'GET', path: '/health', probe: true, answer: () => ({ status: 200 }) },
    { method: 'GET', path: '/metrics', probe: true, answer: () => this.#metrics() },
  ];
  readonly #perTokenMs: number;
  readonly #reply: (request: LlmRequest, call: StubCall) => LlmReply | Promise<LlmReply>;
  readonly #models: readonly string[] | undefined;
  readonly #batch: Batch;
  readonly #maxQueued: number;
  readonly #rate: KeyedRate | undefined;

  constructor(given: StubLlmOptions = {}) {
    super(
      'StubLlm',
      options('StubLlm options', given, [
        ...STUB_SERVICE_OPTIONS,
        'perTokenMs',
        'reply',
        'models',
        'maxNumSeqs',
        'maxQueued',
        'rate',
      ]),
    );
    this.#perTokenMs = durationMs('perTokenMs', given.perTokenMs ?? 0);
    this.#reply = callable('reply', given.reply ?? defaultReply);
    this.#models = given.models?.map((model, i) => text(`models[${i}]`, model));
    this.#batch = new Batch(countOrUnlimited('maxNumSeqs', given.maxNumSeqs, 1));
    this.#maxQueued = countOrUnlimited('maxQueued', given.maxQueued);
    this.#rate = rateOf('rate', given.rate, this.timeScale);
  }

  /** The `baseURL` for OpenAI clients. */
  get baseUrl(): string {
    return `${this.url}/v1`;
  }

  /** Maximum concurrent calls. Set it to simulate a server that loses or regains capacity. */
  get maxNumSeqs(): number {
    return this.#batch.size;
  }

  set maxNumSeqs(size: number) {
    this.#batch.size = wholeNumber('maxNumSeqs', size);
  }

  /** The state of the batch. */
  batch(): LlmBatchStats {
    return this.#batch.stats();
  }

  override resetStats(): void {
    super.resetStats();
    this.#batch.resetPeaks();
  }

  protected override keyOf(headers: IncomingHttpHeaders): string | undefined {
    return /^Bearer (.+)$/i.exec(headers.authorization ?? '')?.[1];
  }

  protected override refuse(status: number, { reason, retryAfter }: Refusal): StubReply {
    const wait = retryAfter === undefined ? '' : ` Please try again in ${goDuration(retryAfter.ms)}.`;
    if (status === 429 && reason === 'rate') {
      return openAiError(429, `Rate limit reached for requests.${wait}`, 'requests', 'rate_limit_exceeded');
    }
    if (status === 429 || status === 402) {
      const message = 'You exceeded your current quota, please check your plan and billing details.';
      return openAiError(status, message, 'insufficient_quota', 'insufficient_quota');
    }
    if (status === 401) {
      return openAiError(401, 'Incorrect API key provided.', 'invalid_request_error', 'invalid_api_key');
    }
    if (status < 500) return openAiError(status, REFUSALS[status] ?? 'Bad request', 'invalid_request_error');
    const [type, message] = FAILURES[status] ?? ['Internal Server Error', 'The server had an error.'];
    return json(status, { error: { message, type, param: null, code: status } });
  }

  protected override streamError(call: StubCall, status: number, refusal: Refusal): StubReply {
    const rejected = this.refuse(status, refusal);
    if ((call.body as LlmRequest | undefined)?.stream !== true) return rejected;
    return {
      headers: SSE_HEADERS,
      body: (async function* () {
        yield `data: ${rejected.body as string}\n\n`;
      })(),
      tail: DONE,
    };
  }

  async #chat(call: StubCall): Promise<StubReply> {
    if (!this.knowsKey(call.key)) return this.refuse(401, { reason: 'rate' });
    const request = call.body as LlmRequest;
    if (!isChat(request)) return this.refuse(400, { reason: 'rate' });
    if (this.#models !== undefined && !this.#models.includes(request.model)) {
      const message = `The model \`${request.model}\` does not exist or you do not have access to it.`;
      return openAiError(404, message, 'invalid_request_error', 'model_not_found');
    }
    const admission = this.#rate?.take(call.key ?? '');
    if (admission?.admitted === false) return tooMany(request.model, admission);
    if (this.#batch.isFull && this.#batch.stats().queued >= this.#maxQueued)
      return this.refuse(503, { reason: 'rate' });

    const answer = this.#answer(call, request);
    // If the client disconnects first, nothing awaits it: the rejection must not be unhandled.
    answer.catch(() => {});
    const headers = { 'x-request-id': `req_${call.id}`, ...(admission && limitHeaders(admission)) };
    if (request.stream === true) {
      return { headers: { ...headers, ...SSE_HEADERS }, body: this.#stream(call, answer), tail: DONE };
    }
    const whole = await answer;
    await this.pause(this.latencyOf(call) + whole.tokens * this.#perTokenMs, call.signal);
    return json(200, whole.completion(), headers);
  }

  async #answer(call: StubCall, request: LlmRequest): Promise<LlmAnswer> {
    await this.#batch.enter(call.signal);
    return new LlmAnswer(call.id, request, await this.#reply(request, call));
  }

  async *#stream(call: StubCall, answering: Promise<LlmAnswer>): AsyncGenerator<string> {
    const answer = await answering;
    const startedAtMs = performance.now();
    const latencyMs = this.latencyOf(call);
    let sent = 0;
    for (const chunk of answer.chunks()) {
      // Relative to the start, so that timer delays do not accumulate over many tokens.
      const dueMs = latencyMs + Math.min(sent++, answer.tokens) * this.#perTokenMs;
      await this.pause(dueMs - (performance.now() - startedAtMs) / this.timeScale, call.signal);
      yield chunk;
    }
  }

  #listModels(): StubReply {
    const data = (this.#models ?? [STUB_MODEL]).map((id) => ({
      id,
      object: 'model',
      created: 1_700_000_000,
      owned_by: 'stub',
    }));
    return json(200, { object: 'list', data });
  }

  /** vLLM's load gauges, in Prometheus's text format. */
  #metrics(): StubReply {
    const { running, queued } = this.#batch.stats();
    const model = `model_name="${this.#models?.[0] ?? STUB_MODEL}"`;
    const gauge = (name: string, help: string, value: number, labels = model): string =>
      `# HELP ${name} ${help}\n# TYPE ${name} gauge\n${name}{${labels}} ${value}\n`;
    return {
      headers: { 'content-type': 'text/plain; version=0.0.4; charset=utf-8' },
      body: [
        gauge('vllm:num_requests_running', 'Requests in the running batch.', running),
        gauge('vllm:num_requests_waiting', 'Requests waiting for a place in the batch.', queued),
        gauge(
          'vllm:kv_cache_usage_perc',
          'Share of the KV cache in use, 1 is all.',
          Math.min(running / this.#batch.size, 1),
        ),
      ].join(''),
    };
  }
}

const STUB_MODEL = 'stub-model';
const DONE = 'data: [DONE]\n\n';
const SSE_HEADERS = { 'content-type': 'text/event-stream; charset=utf-8', 'cache-control': 'no-cache' };

const REFUSALS: Readonly<Record<number, string>> = {
  400: 'The body must be JSON with a model and a list of messages, for one choice.',
  403: 'You do not have access to this resource.',
  404: 'Not Found',
};

/** vLLM's error format: `type` is the reason phrase, `code` the status. */
const FAILURES: Readonly<Record<number, readonly [type: string, message: string]>> = {
  503: ['Service Unavailable', 'The server is overloaded, please try again later.'],
  504: ['Gateway Timeout', 'The server did not answer in time.'],
};

const isChat = (body: LlmRequest | undefined): body is LlmRequest =>
  typeof body === 'object' &&
  body !== null &&
  typeof body.model === 'string' &&
  Array.isArray(body.messages) &&
  (body.n ?? 1) === 1;

const openAiError = (status: number, message: string, type: string, code: string | null = null): StubReply =>
  json(status, { error: { message, type, param: null, code } });

const limitHeaders = ({ limit, remaining, resetMs }: RateDecision): Record<string, string> => ({
  'x-ratelimit-limit-requests': String(limit),
  'x-ratelimit-remaining-requests': String(remaining),
  'x-ratelimit-reset-requests': goDuration(resetMs),
});

function tooMany(model: string, admission: RateDecision): StubReply {
  const { limit, waitMs } = admission;
  const message = `Rate limit reached for ${model} on requests: Limit ${limit}, Used ${limit}, Requested 1. Please try again in ${goDuration(waitMs)}.`;
  const rejected = openAiError(429, message, 'requests', 'rate_limit_exceeded');
  const headers = {
    ...limitHeaders({ ...admission, resetMs: waitMs }),
    'retry-after': String(Math.max(1, Math.ceil(waitMs / 1000))),
    'retry-after-ms': String(Math.ceil(waitMs)),
  };
  return { ...rejected, headers: { ...rejected.headers, ...headers } };
}
