import type { RedisClient } from 'pipeline-pool/redis';

/** A connected client of one library, and what closes it. */
export interface TestClient extends AsyncDisposable {
  readonly client: RedisClient;
}

const owned = (client: RedisClient, close: () => unknown): TestClient => ({
  client,
  async [Symbol.asyncDispose]() {
    await close();
  },
});

const ignore = (): void => {};

/** Node-redis refuses to close what is closed. */
function destroy(client: { readonly isOpen: boolean; destroy(): void }): void {
  if (client.isOpen) client.destroy();
}

/** Settings of a client that a test depends on; otherwise those that its library has by default. */
export interface ClientSettings {
  /** Without one, a dead connection that was not reset stays. */
  readonly socketTimeoutMs?: number | undefined;
  /** How long it waits before each attempt to connect again. */
  readonly reconnectMs?: number | undefined;
}

const nodeRedis = (port: number, { socketTimeoutMs, reconnectMs }: ClientSettings = {}) => ({
  url: `redis://127.0.0.1:${port}`,
  socket: {
    ...(socketTimeoutMs !== undefined && { socketTimeout: socketTimeoutMs }),
    ...(reconnectMs !== undefined && { reconnectStrategy: reconnectMs }),
  },
  ...(socketTimeoutMs !== undefined && { pingInterval: socketTimeoutMs / 2 }),
});
const ioRedis = ({ socketTimeoutMs, reconnectMs }: ClientSettings = {}) => ({
  ...(socketTimeoutMs !== undefined && { socketTimeout: socketTimeoutMs }),
  ...(reconnectMs !== undefined && { retryStrategy: () => reconnectMs }),
});

/** The supported clients. A process loads what it uses. */
export const CLIENTS = {
  async 'node-redis 5'(port: number, settings?: ClientSettings): Promise<TestClient> {
    const { createClient } = await import('redis-5');
    const client = createClient(nodeRedis(port, settings)).on('error', ignore);
    await client.connect();
    return owned(client, () => destroy(client));
  },
  async 'node-redis 6'(port: number, settings?: ClientSettings): Promise<TestClient> {
    const { createClient } = await import('redis');
    const client = createClient(nodeRedis(port, settings)).on('error', ignore);
    await client.connect();
    return owned(client, () => destroy(client));
  },
  async 'ioredis 5'(port: number, settings?: ClientSettings): Promise<TestClient> {
    const { Redis } = await import('ioredis-5');
    const client = new Redis(port, '127.0.0.1', ioRedis(settings)).on('error', ignore);
    await client.ping();
    return owned(client, () => client.disconnect());
  },
  async 'ioredis 6'(port: number, settings?: ClientSettings): Promise<TestClient> {
    const { Redis } = await import('ioredis');
    const client = new Redis(port, '127.0.0.1', ioRedis(settings)).on('error', ignore);
    await client.ping();
    return owned(client, () => client.disconnect());
  },
};

export type ClientName = keyof typeof CLIENTS;
