import {
  ConcurrencyLimiter,
  expectOk,
  LifecycleHooks,
  PipelineManager,
  PipelinePool,
  ServiceGate,
  type ServiceGateOptions,
} from 'pipeline-pool';
import { type StubServices, type StubServicesOptions, startStubServices } from 'pipeline-pool/testing';
import { type Diagnosis, diagnosisOf } from '../../src/observability/diagnosis/findings.js';
import type { Machine, MachineFigures } from '../../src/observability/diagnosis/machine.js';
import { Recorder } from '../../src/observability/diagnosis/recorder.js';
import { sleep } from './promises.js';

type GateOptions = Partial<Omit<ServiceGateOptions, 'name' | 'hooks' | 'adaptive' | 'limiter'>>;

/** What is set up, and so what is wrong. Everything that is left out is ample. */
export interface ScenarioOptions {
  readonly services?: StubServicesOptions;
  readonly poolSize?: number;
  readonly maxConcurrentRequests?: number;
  readonly create?: (instanceId: number, services: StubServices) => Promise<unknown>;
  readonly prepare?: () => Promise<unknown>;
  readonly llm?: GateOptions;
  readonly serper?: GateOptions;
  readonly e2b?: GateOptions;
  /** How the process is; calm, where it is not what the scenario is about. */
  readonly machine?: Machine;
}

const CALM: MachineFigures = {
  loopDelayMs: 0,
  longestStallMs: 0,
  cpuShare: 0.1,
  heapBytes: 100,
  heapLimitBytes: 1_000,
  residentBytes: 100,
  memoryBytes: 1_000,
};

/** A machine on which nothing is wrong: that of the tests may be busy with other things. */
export const calmMachine: Machine = { read: () => {}, figures: () => CALM, stop: () => {} };

/** Whose call it is, where that matters. */
interface Ids {
  readonly taskId?: string;
  readonly requestId?: string;
}

/** One service with stubs of everything behind it, recorded from the start. */
export class Scenario implements AsyncDisposable {
  readonly services: StubServices;
  readonly hooks = new LifecycleHooks();
  readonly gates: { readonly llm: ServiceGate; readonly serper: ServiceGate; readonly e2b: ServiceGate };
  readonly limiter: ConcurrencyLimiter;
  readonly manager: PipelineManager<unknown>;
  readonly #recorder: Recorder;
  #skippedMs = 0;

  private constructor(services: StubServices, options: ScenarioOptions) {
    const { hooks } = this;
    const { poolSize = 32, maxConcurrentRequests = 64, create, prepare } = options;
    this.services = services;
    const gate = (name: string, more: GateOptions = {}) =>
      new ServiceGate({ name, retry: { baseMs: 1, maxMs: 2 }, ...more, hooks });
    this.gates = {
      llm: gate('llm', options.llm),
      serper: gate('serper', options.serper),
      e2b: gate('e2b', options.e2b),
    };
    this.limiter = new ConcurrencyLimiter({ maxConcurrent: maxConcurrentRequests, name: 'limiter', hooks });
    this.manager = new PipelineManager<unknown>({
      pool: new PipelinePool<unknown>({
        size: poolSize,
        create: ({ instanceId }) => create?.(instanceId, services) ?? {},
        prepare: () => prepare?.(),
        hooks,
      }),
      limiter: this.limiter,
      gates: Object.values(this.gates),
      hooks,
    });
    this.#recorder = new Recorder(this.manager, 60_000, {
      machine: options.machine ?? calmMachine,
      now: () => performance.now() + this.#skippedMs,
    });
  }

  static async start(options: ScenarioOptions = {}): Promise<Scenario> {
    return new Scenario(await startStubServices(options.services), options);
  }

  /** One chat completion. */
  async ask(request: Ids = {}): Promise<void> {
    const body = { model: 'm', messages: [{ role: 'user', content: 'why?' }] };
    await this.gates.llm.run(
      ({ signal }) => post(`${this.services.llm.baseUrl}/chat/completions`, signal, body),
      idsOf(request),
    );
  }

  /** One search. */
  async search(request: Ids = {}): Promise<void> {
    await this.gates.serper.run(
      ({ signal, key }) =>
        post(`${this.services.serper.url}/search`, signal, { q: 'pools' }, { 'x-api-key': key || 'key' }),
      idsOf(request),
    );
  }

  /** One sandbox, made and given back. */
  async sandbox(): Promise<void> {
    await this.gates.e2b.run(async ({ signal }) => {
      const headers = { 'x-api-key': 'key' };
      const made = await post(
        `${this.services.e2b.url}/v2/sandboxes`,
        signal,
        { templateID: 'base' },
        headers,
      );
      const { sandboxID } = (await made.json()) as { sandboxID: string };
      await fetch(`${this.services.e2b.url}/sandboxes/${sandboxID}`, { method: 'DELETE', headers });
    });
  }

  /** So many requests, all at once. */
  async requests(count: number, work: (request: Ids) => Promise<unknown>): Promise<void> {
    await Promise.allSettled(Array.from({ length: count }, (_, i) => this.manager.run(`task-${i}`, work)));
  }

  /** Lets two minutes pass in which nothing happens. */
  async skip(): Promise<void> {
    // Whatever was to be noted of the time before has its turn first.
    await sleep(20);
    this.#skippedMs += 120_000;
  }

  diagnose(): Diagnosis {
    return diagnosisOf(this.#recorder.report());
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#recorder.stop();
    await this.manager.shutdown({ timeoutMs: 0 });
    await this.services.stop();
  }
}

async function post(
  url: string,
  signal: AbortSignal,
  body: object,
  headers: Readonly<Record<string, string>> = {},
): Promise<Response> {
  const response = await fetch(url, {
    method: 'POST',
    signal,
    body: JSON.stringify(body),
    headers: { 'content-type': 'application/json', authorization: 'Bearer key', ...headers },
  });
  return new Response(await (await expectOk(response)).text(), { status: response.status });
}

const idsOf = ({ taskId, requestId }: Ids): Ids => ({
  ...(taskId === undefined ? {} : { taskId }),
  ...(requestId === undefined ? {} : { requestId }),
});

/** Does something so many times, one after another. */
export async function times(count: number, work: () => Promise<unknown>): Promise<void> {
  for (let i = 0; i < count; i++) await work();
}
