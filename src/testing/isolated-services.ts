import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { refusal } from '../internal/validate.js';
import type { StubCall } from './stub-call.js';
import type { StubE2b } from './stub-e2b.js';
import type { StubJina } from './stub-jina.js';
import type { StubLlm } from './stub-llm.js';
import type { StubSerper } from './stub-serper.js';
import type { StubService } from './stub-service.js';
import type { StubServicesOptions } from './stub-services-options.js';

/** What is known of a stub from its start. */
type Fixed = 'name' | 'timeScale' | 'url';
/** What its process is asked for. */
type Asked = 'calls' | 'stats' | 'peakStartsPer' | 'faultNext' | 'resetStats';

/** A stub in another process: what is asked of it is a method that returns a promise. */
export type IsolatedStub<S extends StubService, F extends keyof S = never, A extends keyof S = never> = Pick<
  S,
  F | Fixed
> & {
  readonly [M in A | Asked]: S[M] extends (...given: infer Given) => infer R
    ? (...given: Given) => Promise<R>
    : () => Promise<S[M]>;
};

/** The four running services of a research pipeline, in a process of their own. */
export interface IsolatedStubServices extends AsyncDisposable {
  readonly llm: IsolatedStub<StubLlm, 'baseUrl', 'batch'>;
  readonly serper: IsolatedStub<StubSerper, never, 'creditsLeft'>;
  readonly jina: IsolatedStub<StubJina>;
  readonly e2b: IsolatedStub<StubE2b, 'connection', 'sandboxes' | 'peakSandboxes'>;
  /** Resets the counts of all four. */
  resetStats(): Promise<void>;
  /** Ends the process, with all calls in flight. */
  stop(): Promise<void>;
}

export const FIXED = {
  llm: ['name', 'timeScale', 'url', 'baseUrl'],
  serper: ['name', 'timeScale', 'url'],
  jina: ['name', 'timeScale', 'url'],
  e2b: ['name', 'timeScale', 'url', 'connection'],
} as const;
const ASKED: readonly Asked[] = ['calls', 'stats', 'peakStartsPer', 'faultNext', 'resetStats'];
const ASKED_OF: Readonly<Record<ServiceName, readonly string[]>> = {
  llm: [...ASKED, 'batch'],
  serper: [...ASKED, 'creditsLeft'],
  jina: ASKED,
  e2b: [...ASKED, 'sandboxes', 'peakSandboxes'],
};

/** Host code that the process calls: it may take its time, so it can run here. */
const SCRIPTS: Readonly<Record<ServiceName, string>> = {
  llm: 'reply',
  serper: 'results',
  jina: 'page',
  e2b: 'execute',
};

export type ServiceName = keyof typeof FIXED;

/** A call as it crosses processes. */
export type SentCall = Omit<StubCall, 'query' | 'signal'>;

/** What the process starts with. `scripted` services call host code. */
export interface StubSetup {
  readonly options: StubServicesOptions;
  readonly scripted: readonly (readonly [ServiceName, option: string])[];
}

/** To the process: what it starts with, a question, or the result of host code. */
export type ToProcess =
  | { readonly setup: StubSetup }
  | {
      readonly ask: number;
      readonly service: ServiceName;
      readonly member: string;
      readonly given: readonly unknown[];
    }
  | ({ readonly ran: number } & Outcome);

/** From the process: it listens, an answer, or a call of host code and its end. */
export type FromProcess =
  | Started
  | { readonly failed: unknown }
  | ({ readonly answered: number } & Outcome)
  | ScriptRun
  | { readonly over: number };

interface Started {
  /** What is known of each service from its start. */
  readonly started: Readonly<Record<ServiceName, Readonly<Record<string, unknown>>>>;
  readonly timeOriginMs: number;
}

interface ScriptRun {
  readonly run: number;
  readonly service: ServiceName;
  readonly given: readonly unknown[];
  readonly call: SentCall;
}

export type Outcome = { readonly value: unknown } | { readonly error: unknown };

/** Settles as the work does. */
export async function outcomeOf(work: () => unknown): Promise<Outcome> {
  try {
    return { value: await work() };
  } catch (error) {
    return { error };
  }
}

/** In the package beside this file; from source, where a loader of TypeScript runs it. */
const PROGRAM = new URL(`./stub-process.${import.meta.url.endsWith('.ts') ? 'ts' : 'js'}`, import.meta.url);

/** Starts the services in a process of their own, whose event loop the host's code does not delay. */
export async function startIsolatedServices(options: StubServicesOptions): Promise<IsolatedStubServices> {
  const setup = setupOf(options);
  // Advanced: dates, errors and `undefined` cross as they are.
  const child = fork(fileURLToPath(PROGRAM), { serialization: 'advanced' });
  const stubs = new StubProcess(child, options);
  const { started } = await stubs.start(setup);
  const stub = (service: ServiceName): never =>
    Object.freeze({
      ...started[service],
      ...Object.fromEntries(
        ASKED_OF[service].map((member) => [
          member,
          (...given: readonly unknown[]) => stubs.ask(service, member, given),
        ]),
      ),
    }) as never;
  return {
    llm: stub('llm'),
    serper: stub('serper'),
    jina: stub('jina'),
    e2b: stub('e2b'),
    resetStats: async () => {
      const names = Object.keys(FIXED) as ServiceName[];
      await Promise.all(names.map((service) => stubs.ask(service, 'resetStats', [])));
    },
    stop: () => stubs.stop(),
    [Symbol.asyncDispose]: () => stubs.stop(),
  };
}

/** The options without their functions, which cannot cross processes. */
function setupOf({ timeScale, ...given }: StubServicesOptions): StubSetup {
  const options: Record<string, unknown> = { timeScale };
  const scripted: [ServiceName, string][] = [];
  for (const [service, own] of Object.entries(given) as [ServiceName, object | undefined][]) {
    if (own === undefined || !(service in FIXED)) continue;
    const sent: Record<string, unknown> = {};
    for (const [option, value] of Object.entries(own)) {
      if (option === SCRIPTS[service] && typeof value === 'function') scripted.push([service, option]);
      else if (typeof value === 'function') {
        throw new TypeError(
          refusal(`${service}.${option}`, 'no function, where the stubs are isolated', value),
        );
      } else sent[option] = value;
    }
    options[service] = sent;
  }
  return { options, scripted };
}

/**
 * The process of the services, as the host sees it.
 *
 * Invariants:
 * - Each question settles: with its answer, or with what ended the process.
 * - After `stop`, nothing of it is left.
 */
class StubProcess {
  readonly #child: ChildProcess;
  readonly #options: StubServicesOptions;
  readonly #exit: Promise<unknown>;
  readonly #pending = new Map<number, (outcome: Outcome) => void>();
  readonly #scripts = new Map<number, AbortController>();
  #onStarted: (started: Outcome) => void = () => {};
  #timeOriginMs = 0;
  #asked = 0;
  #failure: unknown;

  constructor(child: ChildProcess, options: StubServicesOptions) {
    this.#child = child;
    this.#options = options;
    child.on('message', (message: FromProcess) => this.#receive(message));
    child.on('error', (error) => this.#end(error));
    child.on('exit', () => this.#end(new Error('The stub services are stopped')));
    this.#exit = once(child, 'exit').catch(() => {});
  }

  async start(setup: StubSetup): Promise<Started> {
    const outcome = await new Promise<Outcome>((resolve) => {
      this.#onStarted = resolve;
      this.#post({ setup });
    });
    if ('value' in outcome) return outcome.value as Started;
    await this.stop();
    throw outcome.error;
  }

  async ask(service: ServiceName, member: string, given: readonly unknown[]): Promise<unknown> {
    if (this.#failure !== undefined) throw this.#failure;
    const ask = ++this.#asked;
    const outcome = await new Promise<Outcome>((resolve) => {
      this.#pending.set(ask, resolve);
      this.#post({ ask, service, member, given });
    });
    if ('error' in outcome) throw outcome.error;
    return member === 'calls'
      ? (outcome.value as SentCall[]).map((call) => this.#callOf(call))
      : outcome.value;
  }

  async stop(): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.#exit;
  }

  #post(message: ToProcess): void {
    // What cannot be sent is no longer awaited: the process has ended.
    if (this.#child.connected) this.#child.send(message);
  }

  #receive(message: FromProcess): void {
    if ('started' in message) {
      this.#timeOriginMs = message.timeOriginMs;
      this.#onStarted({ value: message });
    } else if ('failed' in message) this.#onStarted({ error: message.failed });
    else if ('answered' in message) {
      this.#pending.get(message.answered)?.(message);
      this.#pending.delete(message.answered);
    } else if ('over' in message) this.#scripts.get(message.over)?.abort();
    else void this.#run(message);
  }

  async #run({ run, service, given, call }: ScriptRun): Promise<void> {
    const controller = new AbortController();
    this.#scripts.set(run, controller);
    const own = this.#options[service] as Readonly<Record<string, (...all: unknown[]) => unknown>>;
    const outcome = await outcomeOf(() =>
      own[SCRIPTS[service]]?.(...given, this.#callOf(call, controller.signal)),
    );
    this.#scripts.delete(run);
    try {
      this.#post({ ran: run, ...outcome });
    } catch (error) {
      // A result that cannot cross, such as one with a function: the call fails, as if its script had thrown this.
      this.#post({ ran: run, error });
    }
  }

  /** The time of another process counts from its start. */
  #callOf(
    { startedAtMs, ...call }: SentCall,
    signal = call.end === undefined ? new AbortController().signal : AbortSignal.abort(),
  ): StubCall {
    const { searchParams: query } = new URL(call.url, 'http://stub');
    return { ...call, query, signal, startedAtMs: startedAtMs + this.#timeOriginMs - performance.timeOrigin };
  }

  #end(failure: unknown): void {
    this.#failure ??= failure;
    const ended = { error: this.#failure };
    this.#onStarted(ended);
    for (const settle of this.#pending.values()) settle(ended);
    this.#pending.clear();
    for (const controller of this.#scripts.values()) controller.abort();
  }
}
