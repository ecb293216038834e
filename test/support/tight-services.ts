/** A host's clients of four services with tight limits, and a gate for each. The services run in a process of their own. */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { Sandbox } from '@e2b/code-interpreter';
import OpenAI from 'openai';
import {
  e2bPreset,
  expectOk,
  jinaPreset,
  type LifecycleHooks,
  openAiPreset,
  type RateWindow,
  ServiceGate,
  serperPreset,
} from 'pipeline-pool';
import { JINA_REFUSES, LEFT_AT, LIMITS, SERPER_KEYS, sharedNowMs } from './tight-limits.js';
import type { Addresses, ServicesSaw, StubRequest } from './tight-stubs.js';

/** How fast everything goes. */
export interface Pace {
  /** 1 is the pace of real services. */
  readonly timeScale: number;
  /** The second in which the services count, here. */
  readonly secondMs: number;
}

/**
 * How much longer a gate's window is than the service's. A call that leaves a window after another arrives sooner by what
 * it travels faster: the margin is for that. Creations are the tightest, and a longer margin there is a longer run.
 */
export interface Margins {
  readonly creationMs: number;
  readonly otherMs: number;
}

const leavingNow = (): Record<string, string> => ({ [LEFT_AT]: String(sharedNowMs()) });

export class TightServices implements AsyncDisposable {
  readonly #process: ChildProcess;
  readonly #addresses: Addresses;
  readonly #sdkRetries: boolean;
  readonly #openai: OpenAI;
  #searches = 0;

  private constructor(child: ChildProcess, addresses: Addresses, sdkRetries: boolean) {
    this.#process = child;
    this.#addresses = addresses;
    this.#sdkRetries = sdkRetries;
    const maxRetries = sdkRetries ? 2 : 0;
    this.#openai = new OpenAI({ baseURL: addresses.llm, apiKey: 'any', maxRetries });
  }

  /** `sdkRetries`: the SDKs try again by themselves, as they do by default. */
  static async start({ timeScale, secondMs }: Pace, sdkRetries: boolean): Promise<TightServices> {
    const pace = [String(timeScale), String(secondMs)];
    const child = fork(new URL('./tight-stubs.ts', import.meta.url), pace, { execArgv: ['--import', 'tsx'] });
    const services = new TightServices(child, await messageOf<Addresses>(child), sdkRetries);
    try {
      await services.#warmUp();
      // Until the warm-up has left every window.
      await sleep(secondMs);
      await services.#request('forget');
    } catch (error) {
      await services[Symbol.asyncDispose]();
      throw error;
    }
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
    const url = `${this.#addresses.serper}/search`;
    return (await expectOk(await fetch(url, { method: 'POST', headers, body, signal }))).json();
  }

  async read(url: string, signal?: AbortSignal): Promise<unknown> {
    const headers = { authorization: 'Bearer jina-key', accept: 'application/json', ...leavingNow() };
    return (await expectOk(await fetch(`${this.#addresses.jina}/${url}`, { headers, signal }))).json();
  }

  /** Runs a program in a sandbox of its own. */
  async run(code: string, signal?: AbortSignal): Promise<unknown> {
    const sandbox = await Sandbox.create({
      ...this.#addresses.e2b,
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

  /** What the services saw since the start. */
  saw(): Promise<ServicesSaw> {
    return this.#request('report');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const { exitCode, signalCode } = this.#process;
    if (exitCode !== null || signalCode !== null) return;
    const gone = once(this.#process, 'exit');
    this.#process.kill('SIGKILL');
    await gone;
  }

  #request(what: StubRequest): Promise<ServicesSaw> {
    const answer = messageOf<ServicesSaw>(this.#process);
    this.#process.send(what);
    return answer;
  }

  /** First calls are slow to leave: code is loaded, and connections are opened. They are not counted. */
  async #warmUp(): Promise<void> {
    const times = <R>(count: number, call: () => Promise<R>): readonly Promise<R>[] =>
      Array.from({ length: count }, call);
    // Jina refuses some at random, here as well.
    const read = (): Promise<unknown> => this.read('https://example.com/warm-up').catch(() => {});
    await Promise.all<unknown>([
      ...times(LIMITS.llmAtOnce, () => this.complete([{ role: 'user', content: 'warm-up' }], [])),
      ...times(LIMITS.searchesPerSecond * SERPER_KEYS.length, () => this.search('warm-up')),
      ...times(LIMITS.pagesPerSecond, read),
      this.run('warm-up'),
    ]);
  }
}

/** The next thing that a process says. */
async function messageOf<T>(child: ChildProcess): Promise<T> {
  const over = new AbortController();
  const { signal } = over;
  try {
    const exit = once(child, 'exit', { signal }).then(([code]) => {
      throw new Error(`The process of the services ended with ${code}`);
    });
    const [message] = (await Promise.race([once(child, 'message', { signal }), exit])) as [T];
    return message;
  } finally {
    over.abort();
  }
}

/** A gate for each service. */
export function gatesFor(
  { timeScale, secondMs }: Pace,
  { creationMs, otherMs }: Margins,
  hooks: LifecycleHooks,
) {
  const perSecond = (limit: number, marginMs: number): readonly RateWindow[] => [
    { limit, perMs: secondMs + marginMs },
  ];
  const retry = { attempts: 6, baseMs: Math.ceil(JINA_REFUSES.cooldownMs * timeScale) };
  const cooldown = { baseMs: secondMs };
  const shared = { retry, cooldown, hooks };
  return {
    llm: new ServiceGate({ ...shared, name: 'llm', ...openAiPreset(), maxConcurrent: LIMITS.llmAtOnce }),
    serper: new ServiceGate({
      ...shared,
      name: 'serper',
      ...serperPreset(),
      keys: SERPER_KEYS,
      rate: perSecond(LIMITS.searchesPerSecond, otherMs),
    }),
    jina: new ServiceGate({
      ...shared,
      name: 'jina',
      ...jinaPreset(),
      rate: perSecond(LIMITS.pagesPerSecond, otherMs),
    }),
    e2b: new ServiceGate({
      ...shared,
      name: 'e2b',
      ...e2bPreset({ sandboxes: LIMITS.sandboxes }),
      rate: perSecond(LIMITS.creationsPerSecond, creationMs),
    }),
  };
}
