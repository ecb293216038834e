import type { IncomingHttpHeaders } from 'node:http';
import { callable, durationMs, options } from '../internal/validate.js';
import { dataOf, type Sandbox, SandboxFleet, type StubSandbox } from './sandbox-fleet.js';
import { json, type StubCall, type StubReply, type StubRoute, withHeaders } from './stub-call.js';
import { countOrUnlimited, type KeyedRate, rateOf, retryAfterOf, type StubRate } from './stub-rate.js';
import {
  NO_DETAILS,
  type Refusal,
  STUB_SERVICE_OPTIONS,
  StubService,
  type StubServiceOptions,
} from './stub-service.js';

/** The result of running a piece of code. */
export interface StubExecution {
  /** The value of its last line. */
  readonly text?: string;
  readonly stdout?: readonly string[];
  readonly stderr?: readonly string[];
  readonly error?: { readonly name: string; readonly value: string; readonly traceback?: string };
}

/** Options of `StubE2b`. */
export interface StubE2bOptions extends StubServiceOptions {
  /** The result of code; no code is ever run. @default the same for the same code */
  readonly execute?: (
    code: string,
    sandbox: StubSandbox,
    call: StubCall,
  ) => StubExecution | Promise<StubExecution>;
  /** Maximum running sandboxes of the account; 20 on E2B's free plan. @default unlimited */
  readonly maxSandboxes?: number;
  /** Rate limit of creations per key; 1 per second on E2B's free plan, 5 on the next. @default unlimited */
  readonly createRate?: StubRate;
  /** Milliseconds for which a deleted sandbox still counts against `maxSandboxes`; multiplied by `timeScale`. @default 0 */
  readonly killLagMs?: number;
}

/**
 * A stub of E2B: the management API (create, list, get, set timeout, pause, connect, delete) and, under the same URL, the
 * sandboxes (health, and the code interpreter's `runCode`). `@e2b/code-interpreter` works with it unchanged.
 *
 * Like E2B, it sends two kinds of 429, distinguished by `message`: too many creations (with `Retry-After`) and too many
 * sandboxes (without). If the client disconnects during a creation, no sandbox is created.
 *
 * @example
 * const e2b = await new StubE2b({ maxSandboxes: 4, createRate: { limit: 1, perMs: 1000 } }).start();
 * const sandbox = await Sandbox.create({ ...e2b.connection, retries: 0 });
 * await sandbox.kill();
 * e2b.sandboxes; // => []
 */
export class StubE2b extends StubService {
  protected override readonly routes: readonly StubRoute[] = [
    this.#authorized('POST', '/v2/sandboxes', (call) => this.#create(call)),
    this.#authorized('POST', '/sandboxes', (call) => this.#create(call)),
    this.#authorized('GET', '/v2/sandboxes', (call) => this.#list(call)),
    this.#authorized('GET', '/sandboxes', (call) => this.#list(call)),
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
    this.#createRate = rateOf('createRate', given.createRate, this.timeScale);
    this.#fleet = new SandboxFleet(
      countOrUnlimited('maxSandboxes', given.maxSandboxes),
      durationMs('killLagMs', given.killLagMs ?? 0) * this.timeScale,
    );
  }

  /** Connection options that direct the SDK to this stub. */
  get connection(): { readonly apiUrl: string; readonly sandboxUrl: string; readonly apiKey: string } {
    return { apiUrl: this.url, sandboxUrl: this.url, apiKey: 'e2b_0123456789abcdef' };
  }

  /** All sandboxes, running and paused, oldest first. */
  get sandboxes(): readonly StubSandbox[] {
    return this.#fleet.all.map(dataOf);
  }

  /** Maximum number of sandboxes that were being created or running at once. */
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

  protected override refuse(status: number, { reason }: Refusal = NO_DETAILS): StubReply {
    const atCap = status === 429 && reason === 'quota';
    const message = atCap ? this.#capMessage() : (REFUSALS[status] ?? 'Internal server error');
    return json(status, { code: status, message });
  }

  protected override streamError(call: StubCall, status: number, refusal: Refusal): StubReply {
    const rejected = this.refuse(status, refusal);
    if (call.route !== 'POST /execute') return rejected;
    const { message } = JSON.parse(rejected.body as string) as { message: string };
    const error = { type: 'error', name: 'ExecutionError', value: `${status}: ${message}`, traceback: '' };
    return { headers: LINES_HEADERS, body: linesOf([error]) };
  }

  /** A route of the management API: 401 without a valid key. */
  #authorized(method: string, path: string, answer: StubRoute['answer']): StubRoute {
    const isValid = (key: string | undefined): boolean => key !== undefined && this.knowsKey(key);
    return { method, path, answer: (call) => (isValid(call.key) ? answer(call) : this.refuse(401)) };
  }

  /** A route of one sandbox: 404 without such a sandbox. */
  #managed(method: string, path: string, answer: (sandbox: Sandbox, call: StubCall) => StubReply): StubRoute {
    return this.#authorized(method, path, async (call) => {
      await this.pause(this.latencyOf(call), call.signal);
      const sandbox = this.#fleet.get(call.params.id ?? '');
      if (sandbox !== undefined) return answer(sandbox, call);
      return json(404, { code: 404, message: `Sandbox "${call.params.id}" not found` });
    });
  }

  async #create(call: StubCall): Promise<StubReply> {
    const body = (call.body ?? {}) as CreateBody;
    const timeoutMs = timeoutOf(body);
    if (typeof body.templateID !== 'string' || timeoutMs === undefined) return this.refuse(400);
    const admission = this.#createRate?.take(call.key ?? '');
    if (admission?.admitted === false) {
      const seconds = retryAfterOf(admission);
      return withHeaders(this.refuse(429), {
        'retry-after': seconds,
        'ratelimit-limit': String(admission.limit),
        'ratelimit-remaining': '0',
        'ratelimit-reset': seconds,
      });
    }
    if (!this.#fleet.reserve()) return this.refuse(429, { reason: 'quota' });
    try {
      await this.pause(this.latencyOf(call), call.signal);
    } catch (error) {
      this.#fleet.unreserve();
      throw error;
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
    if (timeoutMs === undefined) return this.refuse(400);
    sandbox.setTimeout(timeoutMs);
    return { status: 204 };
  }

  #pause(sandbox: Sandbox): StubReply {
    if (sandbox.state === 'paused') return this.refuse(409);
    this.#fleet.pause(sandbox);
    return { status: 204 };
  }

  /** Extends a running sandbox, never shortens its time; resumes a paused one if the limit permits. */
  #connect(sandbox: Sandbox, call: StubCall): StubReply {
    const timeoutMs = timeoutOf(call.body as CreateBody | undefined);
    if (timeoutMs === undefined) return this.refuse(400);
    if (sandbox.state === 'running') {
      if (Date.now() + timeoutMs > sandbox.endAt.getTime()) sandbox.setTimeout(timeoutMs);
      return json(200, handleOf(sandbox));
    }
    if (!this.#fleet.reserve()) return this.refuse(429, { reason: 'quota' });
    sandbox.resume(timeoutMs);
    return json(201, handleOf(sandbox));
  }

  /** The health of the sandbox in the header or, without one, of the management API. */
  #health(call: StubCall): StubReply {
    const sandboxId = call.headers['e2b-sandbox-id']?.toString();
    return sandboxId === undefined || this.#running(sandboxId) ? { status: 204 } : notRunning(sandboxId);
  }

  #execute(call: StubCall): StubReply {
    const sandboxId = call.headers['e2b-sandbox-id']?.toString() ?? '';
    const sandbox = this.#running(sandboxId);
    if (sandbox === undefined) return notRunning(sandboxId);
    const { code } = (call.body ?? {}) as { code?: unknown };
    if (typeof code !== 'string') return this.refuse(400);
    return { headers: LINES_HEADERS, body: this.#outputOf(code, sandbox, call) };
  }

  async *#outputOf(code: string, sandbox: Sandbox, call: StubCall): AsyncGenerator<string> {
    yield* linesOf([{ type: 'number_of_executions', execution_count: sandbox.nextExecution() }]);
    const run = async (): Promise<StubExecution> => {
      await this.pause(this.latencyOf(call), call.signal);
      return await this.#runCode(code, sandbox, call);
    };
    const { text, stdout = [], stderr = [], error } = await sandbox.whileRunning(run);
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

/** The request body of a creation or an extension, as far as the stub reads it. */
interface CreateBody {
  readonly templateID?: unknown;
  readonly metadata?: Readonly<Record<string, string>>;
  /** Seconds. */
  readonly timeout?: unknown;
  readonly autoPause?: unknown;
}

const DEFAULT_TIMEOUT_S = 300;
const MAX_TIMEOUT_S = 86_400;
const ENVD_VERSION = '0.5.0';
const LINES_HEADERS = { 'content-type': 'application/json' };

/** The requested time in milliseconds; `undefined` if it is invalid. */
function timeoutOf(body: CreateBody | undefined): number | undefined {
  const { timeout = DEFAULT_TIMEOUT_S } = body ?? {};
  const isValid =
    typeof timeout === 'number' && Number.isInteger(timeout) && timeout >= 0 && timeout <= MAX_TIMEOUT_S;
  return isValid ? timeout * 1000 : undefined;
}

async function* linesOf(messages: readonly unknown[]): AsyncGenerator<string> {
  for (const message of messages) yield `${JSON.stringify(message)}\n`;
}

/** The response of E2B's proxy for a sandbox that does not exist or is paused. */
const notRunning = (sandboxId: string): StubReply =>
  json(502, { sandboxId, message: 'The sandbox was not found', code: 502 });

const handleOf = ({ sandboxId, templateId }: Sandbox) => ({
  templateID: templateId,
  sandboxID: sandboxId,
  clientID: 'stub',
  envdVersion: ENVD_VERSION,
});

const infoOf = (sandbox: Sandbox) => ({
  ...handleOf(sandbox),
  state: sandbox.state,
  startedAt: sandbox.startedAt.toISOString(),
  endAt: sandbox.endAt.toISOString(),
  cpuCount: 2,
  memoryMB: 512,
  diskSizeMB: 1024,
  metadata: sandbox.metadata,
});
