import type { IncomingHttpHeaders } from 'node:http';
import { callable, durationMs, options, text, wholeNumber } from '../internal/validate.js';
import { Batch, type LlmBatchStats } from './batch.js';
import { chatCompletions } from './chat-completions.js';
import { goDuration } from './fault.js';
import { defaultReply, LlmAnswer, type LlmInterface, type LlmReply, type LlmRequest } from './llm-answer.js';
import { messages } from './messages.js';
import { responses } from './responses.js';
import { json, type StubCall, type StubReply, type StubRoute } from './stub-call.js';
import { countOrUnlimited, type KeyedRate, rateOf, retryAfterOf, type StubRate } from './stub-rate.js';
import {
  NO_DETAILS,
  type Refusal,
  STUB_SERVICE_OPTIONS,
  StubService,
  type StubServiceOptions,
} from './stub-service.js';

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
 * A stub of an LLM server: chat completions (OpenAI, vLLM, SGLang), OpenAI's Responses API, and Anthropic's Messages API,
 * each streamed or not, with tool calls. It has the continuous batching of vLLM and, optionally, a rate limit. The SDKs work
 * with it unchanged; `reply` receives the request of any of them as a chat.
 *
 * Bodies, events and headers follow the API references of OpenAI and Anthropic, and vLLM's server (503, `/metrics`). Nothing
 * is stored: the Responses API takes all items in `input`.
 *
 * @example
 * const llm = await new StubLlm({ latencyMs: 200, perTokenMs: 10, maxNumSeqs: 8 }).start();
 * const openai = new OpenAI({ baseURL: llm.baseUrl, apiKey: 'any', maxRetries: 0 });
 * const anthropic = new Anthropic({ baseURL: llm.url, apiKey: 'any', maxRetries: 0 });
 */
export class StubLlm extends StubService {
  protected override readonly routes: readonly StubRoute[] = [
    ...INTERFACES.map(
      (spoken): StubRoute => ({
        method: 'POST',
        path: spoken.path,
        answer: (call) => this.#chat(call, spoken),
      }),
    ),
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
    const key = headers['x-api-key'];
    return typeof key === 'string' ? key : /^Bearer (.+)$/i.exec(headers.authorization ?? '')?.[1];
  }

  protected override refuse(status: number, refusal: Refusal, call?: StubCall): StubReply {
    return json(status, interfaceOf(call).error(status, refusal));
  }

  protected override streamError(call: StubCall, status: number, refusal: Refusal): StubReply {
    if ((call.body as LlmRequest | undefined)?.stream !== true) return this.refuse(status, refusal, call);
    const { tail, errorEvent } = interfaceOf(call);
    return {
      headers: SSE_HEADERS,
      body: (async function* () {
        yield errorEvent(status, refusal);
      })(),
      tail,
    };
  }

  async #chat(call: StubCall, spoken: LlmInterface): Promise<StubReply> {
    const refuse = (status: number, message?: string): StubReply =>
      json(status, spoken.error(status, NO_DETAILS, message), spoken.headers(call.id, undefined));
    if (!this.knowsKey(call.key)) return refuse(401);
    const request = spoken.read(call.body);
    if (typeof request === 'string') return refuse(400, request);
    const { model } = request;
    if (this.#models !== undefined && !this.#models.includes(model)) {
      return refuse(404, `The model \`${model}\` does not exist or you do not have access to it.`);
    }
    const rate = this.#rate?.take(call.key ?? '');
    if (rate?.admitted === false) {
      const { limit, waitMs } = rate;
      const message = `Rate limit reached for ${model} on requests: Limit ${limit}, Used ${limit}, Requested 1. Please try again in ${goDuration(waitMs)}.`;
      return json(429, spoken.error(429, NO_DETAILS, message), {
        ...spoken.headers(call.id, { ...rate, resetMs: waitMs }),
        'retry-after': retryAfterOf(rate),
      });
    }
    if (this.#batch.isFull && this.#batch.stats().queued >= this.#maxQueued) return refuse(503);

    const answer = this.#answer(call, request);
    // If the client disconnects first, nothing awaits it: the rejection must not be unhandled.
    answer.catch(() => {});
    const headers = spoken.headers(call.id, rate);
    if (request.stream === true) {
      return {
        headers: { ...headers, ...SSE_HEADERS },
        body: this.#stream(call, answer, spoken),
        tail: spoken.tail,
      };
    }
    const whole = await answer;
    await this.pause(this.latencyOf(call) + whole.tokens * this.#perTokenMs, call.signal);
    return json(200, spoken.complete(whole), headers);
  }

  async #answer(call: StubCall, request: LlmRequest): Promise<LlmAnswer> {
    await this.#batch.enter(call.signal);
    return new LlmAnswer(call.id, request, await this.#reply(request, call));
  }

  async *#stream(
    call: StubCall,
    answering: Promise<LlmAnswer>,
    spoken: LlmInterface,
  ): AsyncGenerator<string> {
    const answer = await answering;
    const startedAtMs = performance.now();
    const latencyMs = this.latencyOf(call);
    for (const [event, tokens] of spoken.stream(answer)) {
      // Relative to the start, so that timer delays do not accumulate over many tokens.
      const dueMs = latencyMs + tokens * this.#perTokenMs;
      await this.pause(dueMs - (performance.now() - startedAtMs) / this.timeScale, call.signal);
      yield event;
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
const SSE_HEADERS = { 'content-type': 'text/event-stream; charset=utf-8', 'cache-control': 'no-cache' };

const INTERFACES: readonly LlmInterface[] = [chatCompletions, responses, messages];

/** The interface that a call used: for errors outside of any, that of OpenAI. */
const interfaceOf = (call: StubCall | undefined): LlmInterface =>
  INTERFACES.find(({ path }) => call?.route === `POST ${path}`) ?? chatCompletions;
