import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createClient } from 'redis';

/** Whether the tests can start a Redis of their own. */
export const hasRedis = ((): boolean => {
  try {
    execFileSync('redis-server', ['--version']);
    return true;
  } catch {
    console.warn('redis-server is not installed: the tests of fleet limits are skipped');
    return false;
  }
})();

const FAKETIME_LIBRARIES = ['x86_64', 'aarch64'].map(
  (machine) => `/usr/lib/${machine}-linux-gnu/faketime/libfaketime.so.1`,
);
const faketime = FAKETIME_LIBRARIES.find((file) => existsSync(file));
if (faketime === undefined) console.warn('libfaketime is not installed: all clocks are right in these tests');

/** The environment of a process whose clock, the monotonic one aside, is wrong by this much. */
export const skewed = (by: string): Record<string, string> =>
  faketime === undefined ? {} : { LD_PRELOAD: faketime, FAKETIME: by, FAKETIME_DONT_FAKE_MONOTONIC: '1' };

export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as { port: number };
  await new Promise((resolve) => server.close(resolve));
  // A node of a cluster also takes the port 10,000 above.
  return port < 55_000 ? port : freePort();
}

const running = new Set<ChildProcess>();
process.once('exit', () => {
  for (const server of running) server.kill('SIGKILL');
});

/** A redis-server of the test's own: its own port, its own folder, gone afterwards. */
export class RedisServer implements AsyncDisposable {
  readonly port: number;
  readonly #folder = mkdtempSync(join(tmpdir(), 'pipeline-pool-redis-'));
  readonly #args: readonly string[];
  #process: ChildProcess | undefined;

  readonly #env: Readonly<Record<string, string>>;

  private constructor(port: number, args: readonly string[], env: Readonly<Record<string, string>>) {
    this.port = port;
    this.#args = args;
    this.#env = env;
  }

  static async start(
    args: readonly string[] = [],
    env: Readonly<Record<string, string>> = {},
  ): Promise<RedisServer> {
    for (let tries = 0; ; tries++) {
      const server = new RedisServer(await freePort(), args, env);
      try {
        await server.start();
        return server;
      } catch (error) {
        await server[Symbol.asyncDispose]();
        // Another process may have taken the port.
        if (tries === 2) throw error;
      }
    }
  }

  get url(): string {
    return `redis://127.0.0.1:${this.port}`;
  }

  /** Starts it, empty unless `args` say otherwise, and waits until it answers. */
  async start(args: readonly string[] = []): Promise<void> {
    this.#process = spawn(
      'redis-server',
      [
        ...['--port', String(this.port), '--bind', '127.0.0.1', '--dir', this.#folder],
        ...['--save', '', '--appendonly', 'no', '--enable-debug-command', 'yes', '--protected-mode', 'no'],
        ...this.#args,
        ...args,
      ],
      { stdio: 'ignore', env: { ...process.env, ...this.#env } },
    );
    const started = this.#process;
    running.add(started);
    started.once('exit', () => running.delete(started));
    for (let tries = 0; ; tries++) {
      try {
        await this.command('PING');
        return;
      } catch (error) {
        if (tries === 1_000 || this.#process.exitCode !== null) throw error;
        await new Promise((resolve) => setTimeout(resolve, 25));
      }
    }
  }

  /** As `kill -9` does. */
  async kill(): Promise<void> {
    const server = this.#process;
    if (server === undefined || server.exitCode !== null || server.signalCode !== null) return;
    const ended = new Promise((resolve) => server.once('exit', resolve));
    server.kill('SIGKILL');
    await ended;
  }

  pause(): void {
    this.#process?.kill('SIGSTOP');
  }

  resume(): void {
    this.#process?.kill('SIGCONT');
  }

  /** One command over a connection of its own. */
  async command(...args: string[]): Promise<unknown> {
    const client = createClient({
      url: this.url,
      socket: { reconnectStrategy: false, connectTimeout: 5_000 },
    });
    client.on('error', () => {});
    await client.connect();
    try {
      return await client.sendCommand(args);
    } finally {
      client.destroy();
    }
  }

  /** So far, over all connections. */
  async scriptCalls(): Promise<number> {
    const info = String(await this.command('INFO', 'commandstats'));
    let calls = 0;
    for (const [, count] of info.matchAll(/cmdstat_eval(?:sha)?:calls=(\d+)/g)) calls += Number(count);
    return calls;
  }

  keys(): Promise<string[]> {
    return this.command('KEYS', '*') as Promise<string[]>;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.resume();
    await this.kill();
    rmSync(this.#folder, { recursive: true, force: true });
  }
}

/** A server, and a client of it. */
export async function startConnected() {
  const server = await RedisServer.start();
  const client = createClient({ url: server.url });
  client.on('error', () => {});
  await client.connect();
  return {
    server,
    client,
    async [Symbol.asyncDispose]() {
      client.destroy();
      await server[Symbol.asyncDispose]();
    },
  };
}

export type ConnectedServer = Awaited<ReturnType<typeof startConnected>>;
