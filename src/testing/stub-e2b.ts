import type { IncomingHttpHeaders } from 'node:http';
import { callable, durationMs, optional, options, wholeNumber } from '../internal/validate.js';
import {
  type CreateBody,
  handleOf,
  infoOf,
  LINES_HEADERS,
  linesOf,
  notRunning,
  timeoutOf,
} from './e2b-wire.js';
import type { StubRoute } from './routes.js';
import { type Sandbox, SandboxFleet, type StubSandbox } from './sandbox-fleet.js';
import { json, type StubCall, type StubReply } from './stub-call.js';
import { KeyedRate, type StubRate } from './stub-rate.js';
import { type Refusal, STUB_SERVICE_OPTIONS, StubService, type StubServiceOptions } from './stub-service.js';

/** What running a piece of code gives. */
export interface StubExecution {
  /** The value of its last line. */
  readonly text?: string;
  readonly stdout?: readonly string[];
  readonly stderr?: readonly string[];
  readonly error?: { readonly name: string; readonly value: string; readonly traceback?: string };
}

/** Options of `StubE2b`. */
export interface StubE2bOptions extends StubServiceOptions {
  /** What running code gives; no code is ever run. The same for the same code, if left out. */
  readonly execute?: (
    code: string,
    sandbox: StubSandbox,
    call: StubCall,
  ) => StubExecution | Promise<StubExecution>;
  /** Running sandboxes of the account; E2B allows 20 on its free plan. Unlimited if left out. */
  readonly maxSandboxes?: number;
  /** Creations of each key; E2B allows 1 a second on its free plan, 5 on the next. Unlimited if left out. */
  readonly createRate?: StubRate;
  /** Milliseconds that a deleted sandbox still counts against `maxSandboxes`; `timeScale` applies. @default 0 */
  readonly killLagMs?: number;
}

/**
 * A stub of E2B: the management API (create, list, look at, extend, pause, connect, delete) and, under the same URL, the
 * sandboxes themselves (health, and the code interpreter's `runCode`). `@e2b/code-interpreter` runs against it unchanged.
 *
 * As E2B does, it sends two kinds of 429: too many creations (with `Retry-After`) and too many sandboxes (without), told
 * apart by `message`. A client that leaves while its sandbox is being created gets none.
 *
 * @example
 * const e2b = await new StubE2b({ maxSandboxes: 4, createRate: { limit: 1, perMs: 1000 } }).start();
 * const sandbox = await Sandbox.create({ ...e2b.connection, retries: 0 });
 * await sandbox.kill();
 * e2b.sandboxes; // => []
 */
export class StubE2b extends StubService {
  protected override readonly routes: readonly StubRoute[] = [
    { method: 'POST', path: '/v2/sandboxes', answer: (call) => this.#create(call) },
    { method: 'POST', path: '/sandboxes', answer: (call) => this.#create(call) },
    { method: 'GET', path: '/v2/sandboxes', answer: (call) => this.#list(call) },
    { method: 'GET', path: '/sandboxes', answer: (call) => this.#list(call) },
    this.#managed('GET', '/sandboxes/:id', (sandbox) => json(200, infoOf(sandbox))),
    this.#managed('DELETE', '/sandboxes/:id', (sandbox) => this.#kill(sandbox)),
    this.#managed('POST', '/sandboxes/:id/timeout', (sandbox, call) => this.#setTimeout(sandbox, call)),
    this.#managed('POST', '/sandboxes/:id/pause', (sandbox) => this.#pause(sandbox)),
    this.#managed('POST', '/sandboxes/:id/connect', (sandbox, call) => this.#connect(sandbox, call)),
    this.#managed('POST', '/v2/sandboxes/:id/connect', (sandbox, call) => this.#connect(sandbox, call)),
    { method: 'GET', path: '/health', probe: true, answer: (call) => this.#health(call) },
    { method: 'POST', path: '/execute', answer: (call) => this.#execute(call) },
  ];
  readonly #runCode: NonNullable<StubE2bOptions['execute']>;
  readonly #createRate: KeyedRate | undefined;
  readonly #fleet: SandboxFleet;

  constructor(given: StubE2bOptions = {}) {
    super(
      'StubE2b',
      options('StubE2b options', given, [
        ...STUB_SERVICE_OPTIONS,
        'execute',
        'maxSandboxes',
        'createRate',
        'killLagMs',
      ]),
    );
    this.#runCode = callable('execute', given.execute ?? defaultExecution);
    this.#createRate = optional(
      'createRate',
      given.createRate,
      (option, rate) => new KeyedRate(option, rate, this.timeScale),
    );
    this.#fleet = new SandboxFleet(
      optional('maxSandboxes', given.maxSandboxes, (option, value) => wholeNumber(option, value, 0)) ??
        Number.POSITIVE_INFINITY,
      durationMs('killLagMs', given.killLagMs ?? 0) * this.timeScale,
    );
  }

  /** What the SDK takes to come here instead of to E2B. */
  get connection(): { readonly apiUrl: string; readonly sandboxUrl: string; readonly apiKey: string } {
    return { apiUrl: this.url, sandboxUrl: this.url, apiKey: 'e2b_0123456789abcdef' };
  }

  /** The sandboxes that are there, running and paused, oldest first. */
  get sandboxes(): readonly StubSandbox[] {
    return this.#fleet.all.map(({ sandboxId, templateId, metadata, state, startedAt, endAt }) => ({
      sandboxId,
      templateId,
      metadata,
      state,
      startedAt,
      endAt,
    }));
  }

  /** The most sandboxes that were being created and running at once. */
  get peakSandboxes(): number {
    return this.#fleet.peakAlive;
  }

  override resetStats(): void {
    super.resetStats();
    this.#fleet.resetPeak();
  }

  protected override keyOf(headers: IncomingHttpHeaders): string | undefined {
    return headers['x-api-key']?.toString();
  }

  protected override refuse(status: number, { reason }: Refusal): StubReply {
    const atCap = status === 429 && reason === 'quota';
    const message = atCap ? this.#capMessage() : (REFUSALS[status] ?? 'Internal server error');
    return json(status, { code: status, message });
  }

  protected override streamError(call: StubCall, status: number, refusal: Refusal): StubReply {
    const refused = this.refuse(status, refusal);
    if (call.route !== 'POST /execute') return refused;
    const { message } = JSON.parse(refused.body as string) as { message: string };
    const error = { type: 'error', name: 'ExecutionError', value: `${status}: ${message}`, traceback: '' };
    return { headers: LINES_HEADERS, body: linesOf([error]) };
  }

  /** A route on one sandbox: refused without a known key, 404 where there is no such sandbox. */
  #managed(method: string, path: string, answer: (sandbox: Sandbox, call: StubCall) => StubReply): StubRoute {
    return {
      method,
      path,
      answer: async (call) => {
        if (!this.#isLetIn(call)) return this.refuse(401, { reason: 'rate' });
        await this.pause(this.latencyOf(call), call.signal);
        const sandbox = this.#fleet.get(call.params.id ?? '');
        if (sandbox !== undefined) return answer(sandbox, call);
        return json(404, { code: 404, message: `Sandbox "${call.params.id}" not found` });
      },
    };
  }

  async #create(call: StubCall): Promise<StubReply> {
    if (!this.#isLetIn(call)) return this.refuse(401, { reason: 'rate' });
    const body = (call.body ?? {}) as CreateBody;
    const timeoutMs = timeoutOf(body);
    if (typeof body.templateID !== 'string' || timeoutMs === undefined) {
      return this.refuse(400, { reason: 'rate' });
    }
    const verdict = this.#createRate?.take(call.key ?? '');
    if (verdict?.admitted === false) {
      const refused = this.refuse(429, { reason: 'rate' });
      const seconds = String(Math.max(1, Math.ceil(verdict.waitMs / 1000)));
      const headers = {
        'retry-after': seconds,
        'ratelimit-limit': String(verdict.limit),
        'ratelimit-remaining': '0',
        'ratelimit-reset': seconds,
      };
      return { ...refused, headers: { ...refused.headers, ...headers } };
    }
    if (!this.#fleet.reserve()) return this.refuse(429, { reason: 'quota' });
    try {
      await this.pause(this.latencyOf(call), call.signal);
    } catch (left) {
      this.#fleet.unreserve();
      throw left;
    }
    const sandbox = this.#fleet.create({
      templateId: body.templateID,
      metadata: body.metadata ?? {},
      timeoutMs,
      pauseAtEnd: body.autoPause === true,
    });
    return json(201, handleOf(sandbox));
  }

  async #list(call: StubCall): Promise<StubReply> {
    if (!this.#isLetIn(call)) return this.refuse(401, { reason: 'rate' });
    await this.pause(this.latencyOf(call), call.signal);
    const states = call.query.get('state')?.split(',') ?? ['running', 'paused'];
    const wanted = [...new URLSearchParams(call.query.get('metadata') ?? '')];
    const found = this.#fleet.all.filter(
      ({ state, metadata }) =>
        states.includes(state) &&
        wanted.every(([name, value]) => metadata[decodeURIComponent(name)] === decodeURIComponent(value)),
    );
    return json(200, found.map(infoOf));
  }

  #kill(sandbox: Sandbox): StubReply {
    this.#fleet.kill(sandbox);
    return { status: 204 };
  }

  #setTimeout(sandbox: Sandbox, call: StubCall): StubReply {
    const timeoutMs = timeoutOf(call.body as CreateBody | undefined);
    if (timeoutMs === undefined) return this.refuse(400, { reason: 'rate' });
    sandbox.setTimeout(timeoutMs);
    return { status: 204 };
  }

  #pause(sandbox: Sandbox): StubReply {
    if (sandbox.state === 'paused') return this.refuse(409, { reason: 'rate' });
    this.#fleet.pause(sandbox);
    return { status: 204 };
  }

  /** Extends a running sandbox, never shortens it; resumes a paused one, if the account has room. */
  #connect(sandbox: Sandbox, call: StubCall): StubReply {
    const timeoutMs = timeoutOf(call.body as CreateBody | undefined);
    if (timeoutMs === undefined) return this.refuse(400, { reason: 'rate' });
    if (sandbox.state === 'running') {
      if (Date.now() + timeoutMs > sandbox.endAt.getTime()) sandbox.setTimeout(timeoutMs);
      return json(200, handleOf(sandbox));
    }
    if (!this.#fleet.reserve()) return this.refuse(429, { reason: 'quota' });
    sandbox.resume(timeoutMs);
    return json(201, handleOf(sandbox));
  }

  /** Of the sandbox that the header names, or of the management API without one. */
  #health(call: StubCall): StubReply {
    const sandboxId = call.headers['e2b-sandbox-id']?.toString();
    return sandboxId === undefined || this.#running(sandboxId) ? { status: 204 } : notRunning(sandboxId);
  }

  #execute(call: StubCall): StubReply {
    const sandboxId = call.headers['e2b-sandbox-id']?.toString() ?? '';
    const sandbox = this.#running(sandboxId);
    if (sandbox === undefined) return notRunning(sandboxId);
    const { code } = (call.body ?? {}) as { code?: unknown };
    if (typeof code !== 'string') return this.refuse(400, { reason: 'rate' });
    return { headers: LINES_HEADERS, body: this.#outputOf(code, sandbox, call) };
  }

  async *#outputOf(code: string, sandbox: Sandbox, call: StubCall): AsyncGenerator<string> {
    yield* linesOf([{ type: 'number_of_executions', execution_count: sandbox.nextExecution() }]);
    const run = async (): Promise<StubExecution> => {
      await this.pause(this.latencyOf(call), call.signal);
      return await this.#runCode(code, sandbox, call);
    };
    const { text, stdout = [], stderr = [], error } = await sandbox.whileRunning(run());
    yield* linesOf([
      ...stdout.map((line) => ({ type: 'stdout', text: line })),
      ...stderr.map((line) => ({ type: 'stderr', text: line })),
      ...(text === undefined ? [] : [{ type: 'result', is_main_result: true, text }]),
      ...(error === undefined ? [] : [{ type: 'error', traceback: '', ...error }]),
    ]);
  }

  #running(sandboxId: string): Sandbox | undefined {
    const sandbox = this.#fleet.get(sandboxId);
    return sandbox?.state === 'running' ? sandbox : undefined;
  }

  #isLetIn({ key }: StubCall): boolean {
    return key !== undefined && this.knowsKey(key);
  }

  #capMessage(): string {
    return `you have reached the maximum number of concurrent E2B sandboxes (${this.#fleet.cap}). If you need more, please visit 'https://e2b.dev/docs/billing'`;
  }
}

const REFUSALS: Readonly<Record<number, string>> = {
  400: 'Error when parsing request',
  401: 'Invalid API key, please visit https://e2b.dev/docs/api-key for more information.',
  402: 'Your account has no credits left',
  403: 'Access denied',
  404: 'Not found',
  409: 'Sandbox is already paused',
  429: 'Rate limit exceeded',
  503: 'No node is available to place the sandbox',
};

const defaultExecution = (code: string): StubExecution => ({
  stdout: [`ran ${code.split('\n').length} lines\n`],
  text: `the result of ${code.length} characters of code`,
});
