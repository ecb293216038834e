import { createHash } from 'node:crypto';
import { ignoreRejection } from '../internal/abort.js';
import { refusal } from '../internal/validate.js';
import { SCRIPT } from './script.js';

/**
 * The host's Redis client: what is used of it, and one adapter each for node-redis and ioredis, chosen by shape. Commands
 * go through the host's own client; subscriptions through a duplicate of it, which is ours to close.
 */

type Listener = (...args: unknown[]) => void;

/** What is used of a client of node-redis 5 or later (`redis`): `createClient`, `createSentinel` or `createCluster`. */
export interface NodeRedisClient {
  evalSha(sha: string, options: { keys: string[]; arguments: string[] }): Promise<unknown>;
  eval(script: string, options: { keys: string[]; arguments: string[] }): Promise<unknown>;
  duplicate(): unknown;
  on(event: string, listener: Listener): unknown;
  off(event: string, listener: Listener): unknown;
}

/** What is used of a client of ioredis 5 or later, or iovalkey: `Redis` or `Cluster`. */
export interface IoRedisClient {
  evalsha(sha: string, keys: number, ...args: string[]): Promise<unknown>;
  eval(script: string, keys: number, ...args: string[]): Promise<unknown>;
  duplicate(): unknown;
  on(event: string, listener: Listener): unknown;
  off(event: string, listener: Listener): unknown;
}

/** The host's own client, connected. */
export type RedisClient = NodeRedisClient | IoRedisClient;

/** The parts of a duplicate that subscribe and close, of both libraries. */
interface SubscriberClient {
  connect?(): Promise<unknown>;
  subscribe(channel: string, listener?: (message: string) => void): Promise<unknown>;
  unsubscribe(channel: string): Promise<unknown>;
  destroy?(): void;
  disconnect?(): unknown;
  on(event: string, listener: Listener): unknown;
}

/** A script, and the hash by which Redis knows it. */
export interface Script {
  readonly text: string;
  readonly sha: string;
}

export const scriptOf = (text: string): Script => ({
  text,
  sha: createHash('sha1').update(text).digest('hex'),
});

const LIMIT_SCRIPT = /* @__PURE__ */ scriptOf(SCRIPT);
const NOTHING = (): void => {};

/** A method that the client may have, and a state that it may report. */
const has = (client: object, method: string): boolean =>
  typeof (client as Record<string, unknown>)[method] === 'function';

/** Whether this is a client of one of the two libraries. */
export function checkClient(value: RedisClient): RedisClient {
  const isObject = typeof value === 'object' && value !== null;
  if (!isObject || !(has(value, 'evalSha') || has(value, 'evalsha')) || !has(value, 'duplicate')) {
    throw new TypeError(refusal('client', 'a client of node-redis >= 5 or ioredis >= 5', value));
  }
  return value;
}

/** The connection over which commands go, and what becomes known of it. */
export class CommandConnection {
  readonly #client: RedisClient;
  readonly #isNodeRedis: boolean;

  constructor(client: RedisClient) {
    this.#client = client;
    this.#isNodeRedis = has(client, 'evalSha');
  }

  /** False where the client knows that it is not connected; true where it is, or cannot say. */
  get isReady(): boolean {
    const { isReady, status } = this.#client as { readonly isReady?: unknown; readonly status?: unknown };
    return this.#isNodeRedis ? isReady !== false : status === 'ready';
  }

  /** Runs the script. Without a time of its own: a frozen server leaves it pending. */
  async run(keys: string[], args: string[], script: Script = LIMIT_SCRIPT): Promise<unknown> {
    try {
      return await this.#evaluate(script, true, keys, args);
    } catch (error) {
      if (!isUnknownScript(error)) throw error;
      // It was not executed.
      return this.#evaluate(script, false, keys, args);
    }
  }

  /** Reports the end and the return of the connection. Returns a function that ends that. */
  watch(onUp: () => void, onDown: () => void): () => void {
    const client = this.#client;
    const listeners: [string, () => void][] = [
      ['ready', onUp],
      ['reconnecting', onDown],
      ['close', onDown],
      ['end', onDown],
      // An emitter throws an `error` event that has no listener, which would end the process at every outage.
      ['error', NOTHING],
    ];
    for (const [event, listener] of listeners) client.on(event, listener);
    return () => {
      for (const [event, listener] of listeners) client.off(event, listener);
    };
  }

  /** A duplicate for subscriptions. */
  duplicate(): { readonly client: SubscriberClient; readonly isNodeRedis: boolean } {
    return { client: this.#client.duplicate() as SubscriberClient, isNodeRedis: this.#isNodeRedis };
  }

  #evaluate({ sha, text }: Script, byHash: boolean, keys: string[], args: string[]): Promise<unknown> {
    const script = byHash ? sha : text;
    if (this.#isNodeRedis) {
      const client = this.#client as NodeRedisClient;
      const options = { keys, arguments: args };
      return byHash ? client.evalSha(script, options) : client.eval(script, options);
    }
    const client = this.#client as IoRedisClient;
    // As one list, which ioredis flattens: ten thousand arguments would not fit on the stack.
    const all = [...keys, ...args] as unknown as string;
    return byHash ? client.evalsha(script, keys.length, all) : client.eval(script, keys.length, all);
  }
}

const isUnknownScript = (error: unknown): boolean => {
  try {
    return String((error as Error).message).startsWith('NOSCRIPT');
  } catch {
    return false;
  }
};

/**
 * Subscriptions, on a duplicate of the host's client. Messages may be lost at any time: a caller that needs them checks again
 * when `onReady` reports that the connection is back.
 */
export class Subscriber {
  readonly #commands: CommandConnection;
  readonly #listeners = new Map<string, (message: string) => void>();
  readonly #onReady: () => void;
  #client: SubscriberClient | undefined;
  #isNodeRedis = false;
  #isClosed = false;

  constructor(commands: CommandConnection, onReady: () => void) {
    this.#commands = commands;
    this.#onReady = onReady;
  }

  /** Fulfills when the subscription is in place. Rejections are for the caller to ignore: `onReady` follows later. */
  async subscribe(channel: string, listener: (message: string) => void): Promise<void> {
    this.#listeners.set(channel, listener);
    if (this.#client === undefined) this.#open();
    await this.#subscribe(this.#client as unknown as SubscriberClient, channel, listener);
  }

  unsubscribe(channel: string): void {
    this.#listeners.delete(channel);
    if (this.#client !== undefined) ignoreRejection(this.#client.unsubscribe(channel));
  }

  /** Replaces a connection that has gone silent without an error. */
  restart(): void {
    if (this.#client === undefined || this.#isClosed) return;
    this.#drop();
    this.#open();
    void this.#subscribeAll();
  }

  close(): void {
    this.#isClosed = true;
    this.#listeners.clear();
    this.#drop();
  }

  #open(): void {
    const { client, isNodeRedis } = this.#commands.duplicate();
    this.#client = client;
    this.#isNodeRedis = isNodeRedis;
    client.on('error', NOTHING);
    client.on('ready', () => {
      if (this.#client === client) void this.#subscribeAll();
    });
    if (isNodeRedis) {
      client.connect?.().catch(() => {
        // Its own strategy has given up; the next check opens another.
      });
    } else {
      client.on('message', ((channel: string, message: string) => {
        if (this.#client === client) this.#listeners.get(channel)?.(message);
      }) as Listener);
    }
  }

  /** After a connection; a subscription that is in place already stays as it is. */
  async #subscribeAll(): Promise<void> {
    const client = this.#client;
    if (client === undefined || this.#listeners.size === 0) return;
    try {
      await Promise.all(
        [...this.#listeners].map(([channel, listener]) => this.#subscribe(client, channel, listener)),
      );
    } catch {
      // The connection broke again; its return comes back here.
      return;
    }
    if (this.#client === client) this.#onReady();
  }

  /** ioredis emits all messages as one event; it would take a function here for the callback of the command. */
  #subscribe(
    client: SubscriberClient,
    channel: string,
    listener: (message: string) => void,
  ): Promise<unknown> {
    return this.#isNodeRedis ? client.subscribe(channel, listener) : client.subscribe(channel);
  }

  #drop(): void {
    const client = this.#client;
    this.#client = undefined;
    try {
      if (this.#isNodeRedis) client?.destroy?.();
      else client?.disconnect?.();
    } catch {
      // One that is not connected has nothing to close.
    }
  }
}
