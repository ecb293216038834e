import * as crypto from 'node:crypto';
import { createRequire } from 'node:module';
import { resolve } from 'node:path';
import { build } from 'esbuild';
import { createClient } from 'redis';
import { SCRIPT } from '../../../src/redis/script.js';
import { STARTS_SCRIPT } from '../../../src/redis/starts-script.js';
import { seeded } from '../../support/random-numbers.js';

/*
 * A fleet in one process, under a clock of its own: a real Redis executes the scripts one after another, and everything
 * else is simulated, event by event, from one seed: the clock of the server, the clock, the timers and the event loop of
 * each process, and the connections between them. A process can be stopped at any event, and at any reading of its clock.
 */

/** The library as a simulated process loads it: with a clock and timers of its own. */
type Library = typeof import('pipeline-pool') & typeof import('pipeline-pool/redis');

const GLOBALS = ['setTimeout', 'clearTimeout', 'setImmediate', 'clearImmediate', 'performance'];
let bundle: Promise<string> | undefined;
function libraryText(): Promise<string> {
  bundle ??= build({
    stdin: {
      contents: "export * from './src/index.ts'; export * from './src/redis/index.ts';",
      resolveDir: resolve('.'),
    },
    bundle: true,
    write: false,
    platform: 'node',
    format: 'cjs',
    target: 'node20',
    tsconfig: resolve('tsconfig.json'),
  }).then(({ outputFiles }) => outputFiles[0]?.text as string);
  return bundle;
}

const nativeRequire = createRequire(import.meta.url);
const shaOf = (text: string): string => crypto.createHash('sha1').update(text).digest('hex');

/** Scripts that take the time, the identity of the server and the number of subscribers from the simulation, and expire nothing. */
function simulated(text: string): string {
  const publish = `local function publish(channel, message)
  redis.call('RPUSH', 'sim:out', channel, message)
  return tonumber(redis.call('HGET', 'sim:subscribers', channel)) or 0
end
local function expire() end
`;
  return (
    publish +
    text
      .replace("call('TIME')", "call('HMGET', 'sim', 's', 'us')")
      .replace(
        "redis.pcall('INFO', 'server')",
        "('run_id:' .. call('HGET', 'sim', 'run') .. ' uptime_in_seconds:86400')",
      )
      .replaceAll("call('PUBLISH', ", 'publish(')
      // In the time of the server, which is not that of the simulation.
      .replaceAll("call('PEXPIRE', ", 'expire(')
  );
}

const connect = (port: number) =>
  createClient({ url: `redis://127.0.0.1:${port}` })
    .on('error', () => {})
    .connect();
type Client = Awaited<ReturnType<typeof connect>>;

const drain = (): Promise<void> => new Promise((done) => setImmediate(done));

interface Event {
  readonly atMs: number;
  readonly order: number;
  readonly process: SimulatedProcess | undefined;
  readonly act: () => unknown;
}

type Listener = (...args: unknown[]) => void;

export class Simulation implements AsyncDisposable {
  /** Milliseconds since the simulation began. */
  nowMs = 0;
  /** What the clock of the server is wrong by. */
  skewMs = 0;
  /** Until when Redis executes nothing. */
  frozenUntilMs = 0;
  /** The longest time that a message takes in one direction. */
  latencyMs = 2;
  runId = 'abc';
  readonly random: () => number;
  readonly processes: SimulatedProcess[] = [];
  readonly client: Client;
  readonly library: string;
  readonly #events: Event[] = [];
  #order = 0;
  readonly #scripts = new Map<string, string>();

  private constructor(seed: number, client: Client, library: string) {
    this.random = seeded(seed);
    this.client = client;
    this.library = library;
  }

  static async start(port: number, seed: number): Promise<Simulation> {
    const client = await connect(port);
    await client.flushAll();
    const simulation = new Simulation(seed, client, await libraryText());
    for (const text of [SCRIPT, STARTS_SCRIPT])
      simulation.#scripts.set(shaOf(text), await client.scriptLoad(simulated(text)));
    return simulation;
  }

  between(min: number, max: number): number {
    return min + (max - min) * this.random();
  }

  add(): SimulatedProcess {
    const process = new SimulatedProcess(this, this.processes.length);
    this.processes.push(process);
    return process;
  }

  /** In `afterMs`, outside of any process. */
  after(ms: number, act: () => unknown): void {
    this.schedule(this.nowMs + ms, undefined, act);
  }

  schedule(atMs: number, process: SimulatedProcess | undefined, act: () => unknown): void {
    const event: Event = { atMs, order: this.#order++, process, act };
    const events = this.#events;
    let low = 0;
    let high = events.length;
    // The first comes last.
    while (low < high) {
      const middle = (low + high) >> 1;
      const other = events[middle] as Event;
      if (other.atMs > atMs || (other.atMs === atMs && other.order > event.order)) low = middle + 1;
      else high = middle;
    }
    events.splice(low, 0, event);
  }

  /** Goes on until this time. */
  async run(untilMs: number): Promise<void> {
    for (;;) {
      const event = this.#events.at(-1);
      if (event === undefined || event.atMs > untilMs) break;
      this.#events.pop();
      this.nowMs = Math.max(this.nowMs, event.atMs);
      const { process } = event;
      if (process === undefined) await event.act();
      else if (process.isDead) continue;
      else if (process.busyUntilMs > this.nowMs) {
        // What has waited for a process happens in any order.
        this.schedule(process.busyUntilMs + this.random() / 100, process, event.act);
      } else {
        process.localMs = this.nowMs;
        event.act();
        await drain();
        process.busyUntilMs = process.localMs;
      }
    }
    this.nowMs = untilMs;
  }

  /** Executes a script on the real server, now. */
  async execute(sha: string, keys: string[], args: string[]): Promise<unknown> {
    const wallMs = 1_700_000_000_000 + this.nowMs + this.skewMs;
    const channels = new Map<string, number>();
    for (const { channels: own } of this.processes)
      for (const channel of own.keys()) channels.set(channel, (channels.get(channel) ?? 0) + 1);
    const { client } = this;
    const [, , , reply, out] = await Promise.all([
      client.hSet('sim', {
        s: Math.floor(wallMs / 1_000),
        us: Math.floor((wallMs % 1_000) * 1_000),
        run: this.runId,
      }),
      client.del(['sim:out', 'sim:subscribers']),
      channels.size === 0
        ? undefined
        : client.hSet('sim:subscribers', Object.fromEntries([...channels].map(([name, n]) => [name, n]))),
      client.evalSha(this.#scripts.get(sha) as string, { keys, arguments: args }),
      client.lRange('sim:out', 0, -1),
    ]);
    for (let i = 0; i < out.length; i += 2)
      for (const process of this.processes) process.onPublished(out[i] as string, out[i + 1] as string);
    return reply;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.client.destroy();
  }
}

/** One process of the fleet. */
export class SimulatedProcess {
  readonly library: Library;
  /** Its subscriptions, as Redis knows them. */
  readonly channels = new Map<string, (message: string) => void>();
  readonly client: object;
  isDead = false;
  /** Until when its event loop is busy, or the process stopped. */
  busyUntilMs = 0;
  /** Its clock, in a step of its event loop. */
  localMs = 0;
  /** What it read last of its clock. */
  readMs = 0;
  /** How likely a reading of its clock is delayed, and for how long at most. */
  stall: { readonly likely: number; readonly maxMs: number } = { likely: 0, maxMs: 0 };
  /** How likely a listener of the host blocks the event loop, and for how long at most. */
  blocking: { readonly likely: number; readonly maxMs: number } = { likely: 0, maxMs: 0 };
  /** The share of pushes that it loses. */
  pushLoss = 0;
  readonly #simulation: Simulation;
  readonly #listeners = new Map<string, Set<Listener>>();
  readonly #pending = new Map<number, (error: Error) => void>();
  #calls = 0;
  /** Each connection delivers in order. */
  #lastSentMs = 0;
  #lastReceivedMs = 0;
  #lastPushMs = 0;
  isConnected = true;
  /** Which of its batches breaks the connection, before or after Redis has executed it. */
  breaksAt: (args: readonly string[]) => 'request' | 'reply' | undefined = () => undefined;

  constructor(simulation: Simulation, index: number) {
    this.#simulation = simulation;
    this.busyUntilMs = simulation.nowMs;
    this.localMs = simulation.nowMs;
    this.client = this.#makeClient();
    const module = { exports: {} };
    let ids = 0;
    const load = new Function('require', 'module', 'exports', ...GLOBALS, simulation.library);
    const require = (name: string): unknown =>
      /^(node:)?crypto$/.test(name)
        ? { ...crypto, randomBytes: () => Buffer.from(`p${index}-${ids++}---`.slice(0, 6)) }
        : nativeRequire(name);
    load(require, module, module.exports, ...this.#globals());
    this.library = module.exports as Library;
  }

  /** Stops it for so long, beginning with its next event. */
  stop(ms: number): void {
    this.busyUntilMs = Math.max(this.busyUntilMs, this.#simulation.nowMs) + ms;
  }

  kill(): void {
    this.isDead = true;
    this.channels.clear();
  }

  /** The connection for commands breaks: what is in flight may have been executed or not. */
  disconnect(forMs: number): void {
    this.isConnected = false;
    const pending = [...this.#pending.values()];
    this.#pending.clear();
    const simulation = this.#simulation;
    simulation.schedule(simulation.nowMs, this, () => {
      for (const reject of pending) reject(new Error('Socket closed unexpectedly'));
      this.#emit('reconnecting');
    });
    simulation.schedule(simulation.nowMs + forMs, this, () => {
      this.isConnected = true;
      this.#emit('ready');
    });
  }

  /** In `ms`, by its own timers. */
  sleep(ms: number): Promise<void> {
    return new Promise((done) => this.#simulation.schedule(this.localMs + ms, this, done));
  }

  onPublished(channel: string, message: string): void {
    const listener = this.channels.get(channel);
    const simulation = this.#simulation;
    if (listener === undefined || simulation.random() < this.pushLoss) return;
    this.#lastPushMs = Math.max(this.#lastPushMs, simulation.nowMs + this.#latency());
    simulation.schedule(this.#lastPushMs, this, () => listener(message));
  }

  #latency(): number {
    return this.#simulation.between(0.05, this.#simulation.latencyMs);
  }

  #emit(event: string): void {
    for (const listener of this.#listeners.get(event) ?? []) listener();
  }

  #globals(): unknown[] {
    const simulation = this.#simulation;
    const timer = (atMs: number, act: () => void): object => {
      const handle = { isCleared: false, unref: () => handle, ref: () => handle };
      simulation.schedule(atMs, this, () => {
        if (!handle.isCleared) act();
      });
      return handle;
    };
    const setTimeout = (act: (...args: unknown[]) => void, ms = 0, ...args: unknown[]): object =>
      // Timers of Node.js may be a millisecond early.
      timer(this.localMs + Math.max(1, ms) + simulation.between(-1, 1), () => act(...args));
    const setImmediate = (act: (...args: unknown[]) => void, ...args: unknown[]): object =>
      timer(this.localMs + 0.001, () => act(...args));
    const clear = (handle: { isCleared: boolean } | undefined): void => {
      if (handle) handle.isCleared = true;
    };
    const now = (): number => {
      this.localMs += 0.001;
      if (simulation.random() < this.stall.likely) this.localMs += simulation.between(0, this.stall.maxMs);
      this.readMs = this.localMs;
      return this.localMs;
    };
    return [setTimeout, clear, setImmediate, clear, { now }];
  }

  #run(sha: string, keys: string[], args: string[]): Promise<unknown> {
    const simulation = this.#simulation;
    if (!this.isConnected) return Promise.reject(new Error('Not connected'));
    const breaks = this.breaksAt(args);
    return new Promise((fulfill, reject) => {
      const call = this.#calls++;
      this.#pending.set(call, reject);
      this.#lastSentMs = Math.max(this.#lastSentMs, this.localMs + this.#latency());
      const arrive = async (): Promise<void> => {
        if (simulation.frozenUntilMs > simulation.nowMs) {
          simulation.schedule(simulation.frozenUntilMs, undefined, arrive);
          return;
        }
        if (breaks === 'request') {
          this.disconnect(100);
          return;
        }
        // One that was in flight when its connection broke may be lost.
        if (!this.#pending.has(call) && simulation.random() < 0.5) return;
        let settle: () => void;
        try {
          const reply = await simulation.execute(sha, keys, args);
          if (breaks === 'reply') {
            this.disconnect(100);
            return;
          }
          settle = () => fulfill(reply);
        } catch (error) {
          settle = () => reject(error);
        }
        this.#lastReceivedMs = Math.max(this.#lastReceivedMs, simulation.nowMs + this.#latency());
        simulation.schedule(this.#lastReceivedMs, this, () => {
          if (this.#pending.delete(call)) settle();
        });
      };
      simulation.schedule(this.#lastSentMs, undefined, arrive);
    });
  }

  #makeClient(): object {
    const self = this;
    const simulation = this.#simulation;
    return {
      get isReady() {
        return self.isConnected;
      },
      evalSha: (sha: string, { keys, arguments: args }: { keys: string[]; arguments: string[] }) =>
        this.#run(sha, keys, args),
      eval: () => Promise.reject(new Error('Not used')),
      on: (event: string, listener: Listener) => {
        const listeners = this.#listeners.get(event) ?? new Set();
        this.#listeners.set(event, listeners.add(listener));
      },
      off: (event: string, listener: Listener) => this.#listeners.get(event)?.delete(listener),
      duplicate: () => ({
        connect: () => Promise.resolve(),
        on: () => {},
        subscribe: (channel: string, listener: (message: string) => void) =>
          new Promise<void>((done) => {
            simulation.schedule(this.localMs + this.#latency(), undefined, () => {
              if (!this.isDead) this.channels.set(channel, listener);
              simulation.schedule(simulation.nowMs + this.#latency(), this, done);
            });
          }),
        unsubscribe: (channel: string) => {
          this.channels.delete(channel);
          return Promise.resolve();
        },
        destroy: () => this.channels.clear(),
      }),
    };
  }
}
