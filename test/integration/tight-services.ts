/**
 * Four stub services with tight limits, a host's clients of them, a gate for each, and what the services counted.
 * Durations are those of real services; `timeScale` shortens all of them alike.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { Sandbox } from '@e2b/code-interpreter';
import OpenAI from 'openai';
import {
  e2bPreset,
  jinaPreset,
  type LifecycleHooks,
  openAiPreset,
  type RateWindow,
  ServiceGate,
  serperPreset,
} from 'pipeline-pool';
import { randomFault, type StubCall, type StubServices, startStubServices } from 'pipeline-pool/testing';
import { scriptedModel } from '../../examples/scripted-model.js';

/** What the services allow. */
export const LIMITS = { llmAtOnce: 8, searchesPerSecond: 5, sandboxes: 4, creationsPerSecond: 1 } as const;
export const SERPER_KEYS = ['serper-key-1', 'serper-key-2'] as const;
const PAGES_PER_MINUTE = 500;
const SECOND_MS = 1_000;

/** How long they take. */
export const LLM_MS = 200;
const SEARCH_MS = 300;
const PAGE_MS = 400;
const CREATE_MS = 400;
/** Every fifth program takes long, so that sandboxes pile up now and then. */
const RUN_MS = ({ id }: StubCall): number => (id % 5 === 0 ? 3_000 : 800);
/** One page in twenty is answered 429, and half a second of rest asked for. */
const JINA_REFUSES = 0.05;
const JINA_REST_MS = 500;

const CREATE = 'POST /v2/sandboxes';
const EXECUTE = 'POST /execute';

/** The header that says when an attempt left, on the clock that the stubs read when it arrives. */
const LEFT_AT = 'x-left-at';
/** It is written a moment after the gate has read its own clock, and a busy machine may take that moment for others. */
const STAMP_MS = 10;
const leavingNow = (): Record<string, string> => ({ [LEFT_AT]: String(performance.now()) });

export class TightServices implements AsyncDisposable {
  readonly #stubs: StubServices;
  readonly #timeScale: number;
  readonly #sdkRetries: boolean;
  readonly #openai: OpenAI;
  #searches = 0;

  private constructor(stubs: StubServices, timeScale: number, sdkRetries: boolean) {
    this.#stubs = stubs;
    this.#timeScale = timeScale;
    this.#sdkRetries = sdkRetries;
    const maxRetries = sdkRetries ? 2 : 0;
    this.#openai = new OpenAI({ baseURL: stubs.llm.baseUrl, apiKey: 'any', maxRetries });
  }

  /** `sdkRetries`: the SDKs try again by themselves, as they do unless they are told otherwise. */
  static async start(timeScale: number, sdkRetries: boolean): Promise<TightServices> {
    const retryAfter = { as: 'milliseconds', ms: JINA_REST_MS * timeScale } as const;
    const stubs = await startStubServices({
      timeScale,
      llm: { reply: scriptedModel, latencyMs: LLM_MS, maxNumSeqs: LIMITS.llmAtOnce, maxQueued: 0 },
      serper: {
        latencyMs: SEARCH_MS,
        rate: { limit: LIMITS.searchesPerSecond, perMs: SECOND_MS },
        keys: SERPER_KEYS,
        logSize: 100_000,
      },
      jina: {
        latencyMs: PAGE_MS,
        rate: { limit: PAGES_PER_MINUTE, perMs: 60 * SECOND_MS },
        fault: randomFault(JINA_REFUSES, { type: 'status', status: 429, retryAfter }),
      },
      e2b: {
        latencyMs: (call) => (call.route === EXECUTE ? RUN_MS(call) : call.route === CREATE ? CREATE_MS : 0),
        maxSandboxes: LIMITS.sandboxes,
        createRate: { limit: LIMITS.creationsPerSecond, perMs: SECOND_MS },
        logSize: 100_000,
      },
    });
    const services = new TightServices(stubs, timeScale, sdkRetries);
    await services.#warmUp();
    return services;
  }

  async complete(
    messages: OpenAI.ChatCompletionMessageParam[],
    tools: OpenAI.ChatCompletionTool[],
    signal?: AbortSignal,
  ): Promise<OpenAI.ChatCompletionMessage> {
    const request = { model: 'any', messages, tools };
    const { choices } = await this.#openai.chat.completions.create(request, { signal });
    return choices[0]!.message;
  }

  async search(query: string, key = '', signal?: AbortSignal): Promise<unknown> {
    // Without a gate the keys take turns, as a careful host would have it.
    const own = key === '' ? SERPER_KEYS[this.#searches++ % SERPER_KEYS.length]! : key;
    const headers = { 'x-api-key': own, ...leavingNow() };
    const body = JSON.stringify({ q: query });
    const url = `${this.#stubs.serper.url}/search`;
    return bodyOf(await fetch(url, { method: 'POST', headers, body, signal }));
  }

  async read(url: string, signal?: AbortSignal): Promise<unknown> {
    const headers = { authorization: 'Bearer jina-key', accept: 'application/json' };
    return bodyOf(await fetch(`${this.#stubs.jina.url}/${url}`, { headers, signal }));
  }

  /** Runs a program in a sandbox of its own. */
  async run(code: string, signal?: AbortSignal): Promise<unknown> {
    const sandbox = await Sandbox.create({
      ...this.#stubs.e2b.connection,
      ...(this.#sdkRetries ? {} : { retries: 0 }),
      apiHeaders: leavingNow(),
      signal,
    });
    try {
      return (await sandbox.runCode(code)).text;
    } finally {
      await sandbox.kill();
    }
  }

  /**
   * What the services counted themselves. Starts within their own window of a second: as they were `seen`, as they `left`
   * here, and as they `arrived`, with what the network did to them taken off.
   *
   * For calls that left a gate's window apart arrive closer together by what the second travelled faster. The gate's window
   * is longer by `slackMs`, which is enough unless the machine stands still for a moment. `arrived` counts within a window
   * that is shorter by what the longest journey took too long.
   */
  counts(slackMs = Number.POSITIVE_INFINITY) {
    const { llm, serper, jina, e2b } = this.#stubs;
    const windowMs = SECOND_MS * this.#timeScale;
    const creations = e2b.calls.filter(({ route }) => route === CREATE);
    const programs = e2b.calls.filter(({ route }) => route === EXECUTE);
    const arrivedWithinMs = (calls: readonly StubCall[]): number =>
      Math.max(1, windowMs - Math.max(0, longestTransitMs(calls) + STAMP_MS - slackMs));
    const searched = SERPER_KEYS.map((key) => serper.calls.filter((call) => call.key === key));
    return {
      llm: {
        calls: llm.stats().calls,
        atOnce: llm.stats().peakInFlight,
        refused: llm.stats().statuses[503] ?? 0,
      },
      serper: {
        calls: serper.stats().calls,
        seen: SERPER_KEYS.map((key) => serper.peakStartsPer(windowMs, { key })),
        arrived: SERPER_KEYS.map((key) => serper.peakStartsPer(arrivedWithinMs(serper.calls), { key })),
        left: searched.map((calls) => peakDeparturesPer(windowMs, calls)),
        refused: serper.stats().statuses[429] ?? 0,
        longestTransitMs: longestTransitMs(serper.calls),
      },
      jina: { calls: jina.stats().calls, refused: jina.stats().statuses[429] ?? 0 },
      e2b: {
        creations: creations.length,
        seen: e2b.peakStartsPer(windowMs, { route: CREATE }),
        arrived: e2b.peakStartsPer(arrivedWithinMs(creations), { route: CREATE }),
        left: peakDeparturesPer(windowMs, creations),
        sandboxes: e2b.peakSandboxes,
        /** Milliseconds that sandboxes lived, all together, at the pace of real services. */
        livedMs: sumOf(programs.map((call) => CREATE_MS + RUN_MS(call))),
        survivors: e2b.sandboxes.length,
        refused: e2b.stats().statuses[429] ?? 0,
        longestTransitMs: longestTransitMs(creations),
      },
      underWay: [llm, serper, jina, e2b].map((service) => service.stats().inFlight),
    };
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#stubs.stop();
  }

  /** First calls are slow to leave: code is loaded, and connections are opened. They are not counted. */
  async #warmUp(): Promise<void> {
    const times = <R>(count: number, call: () => Promise<R>): readonly Promise<R>[] =>
      Array.from({ length: count }, call);
    await Promise.all<unknown>([
      ...times(LIMITS.llmAtOnce, () => this.complete([{ role: 'user', content: 'warm-up' }], [])),
      ...times(LIMITS.searchesPerSecond * SERPER_KEYS.length, () => this.search('warm-up')),
      this.run('warm-up'),
    ]);
    await sleep(SECOND_MS * this.#timeScale);
    this.#stubs.resetStats();
  }
}

async function bodyOf(response: Response): Promise<unknown> {
  const body = (await response.json()) as { readonly message?: string };
  if (response.ok) return body;
  const { status, headers } = response;
  throw Object.assign(new Error(`${status}: ${body.message}`), { status, headers, body });
}

const leftAtMs = ({ headers, startedAtMs }: StubCall): number => Number(headers[LEFT_AT] ?? startedAtMs);

const sumOf = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0);

/** The longest that a call took from leaving to arriving. */
const longestTransitMs = (calls: readonly StubCall[]): number =>
  Math.max(0, ...calls.map((call) => call.startedAtMs - leftAtMs(call)));

/** The most calls that left within any window. */
function peakDeparturesPer(windowMs: number, calls: readonly StubCall[]): number {
  const left = calls.map(leftAtMs).sort((a, b) => a - b);
  return Math.max(0, ...left.map((from, i) => left.filter((at, j) => j >= i && at - from < windowMs).length));
}

/** A gate for each service. Their windows are longer than the services' by `slackMs`, the jitter of a call's journey. */
export function gatesFor(timeScale: number, slackMs: number, hooks: LifecycleHooks) {
  const per = (limit: number, perMs: number): readonly RateWindow[] => [
    { limit, perMs: Math.ceil(perMs * timeScale) + slackMs },
  ];
  const retry = { attempts: 6, baseMs: Math.ceil(500 * timeScale) };
  const rest = { throttledMs: Math.ceil(SECOND_MS * timeScale) };
  const shared = { retry, rest, hooks };
  return {
    llm: new ServiceGate({ ...shared, name: 'llm', ...openAiPreset(), maxConcurrent: LIMITS.llmAtOnce }),
    serper: new ServiceGate({
      ...shared,
      name: 'serper',
      ...serperPreset(),
      keys: SERPER_KEYS,
      rate: per(LIMITS.searchesPerSecond, SECOND_MS),
    }),
    jina: new ServiceGate({
      ...shared,
      name: 'jina',
      ...jinaPreset(),
      rate: per(PAGES_PER_MINUTE, 60 * SECOND_MS),
    }),
    e2b: new ServiceGate({
      ...shared,
      name: 'e2b',
      ...e2bPreset({ sandboxes: LIMITS.sandboxes }),
      rate: per(LIMITS.creationsPerSecond, SECOND_MS),
    }),
  };
}
