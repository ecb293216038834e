import { connect, createServer, type Server, type Socket } from 'node:net';

/** Stands between clients and Redis: delays what passes, or lets connections hang without closing them. */
export class TcpProxy implements AsyncDisposable {
  /** Each way. */
  latencyMs = 0;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  /** Connections that pass nothing on any more, and are not closed: half-open. */
  readonly #hanging = new WeakSet<Socket>();
  readonly #subscribers = new WeakSet<Socket>();
  #target: number;

  private constructor(target: number) {
    this.#target = target;
    this.#server = createServer((client) => {
      const server = connect(this.#target, '127.0.0.1');
      for (const [from, to] of [
        [client, server],
        [server, client],
      ] as const) {
        this.#sockets.add(from);
        from.setNoDelay(true);
        from.on('error', () => {});
        from.on('close', () => {
          this.#sockets.delete(from);
          if (!this.#hanging.has(from)) to.destroy();
        });
        from.on('data', (data) => {
          if (this.#hanging.has(from)) return;
          if (from === client && /^subscribe/im.test(data.toString('latin1'))) {
            this.#subscribers.add(client).add(server);
          }
          if (this.latencyMs === 0) to.write(data);
          else setTimeout(() => !to.destroyed && to.write(data), this.latencyMs);
        });
      }
    });
  }

  static async start(target: number): Promise<TcpProxy> {
    const proxy = new TcpProxy(target);
    await new Promise<void>((resolve) => proxy.#server.listen(0, '127.0.0.1', resolve));
    return proxy;
  }

  get port(): number {
    return (this.#server.address() as { port: number }).port;
  }

  /** Lets the connections of this moment hang; new ones work. */
  hang(which: 'all' | 'subscribers' = 'all'): void {
    for (const socket of this.#sockets) {
      if (which === 'all' || this.#subscribers.has(socket)) this.#hanging.add(socket);
    }
  }

  /** Closes all connections; new ones lead elsewhere. */
  retarget(port: number): void {
    this.#target = port;
    for (const socket of this.#sockets) socket.destroy();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}
