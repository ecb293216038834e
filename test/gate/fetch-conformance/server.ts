import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { until } from '../../support/promises.js';

/** What the server received of one call. */
export interface Received {
  readonly method: string;
  readonly path: string;
  readonly headers: IncomingMessage['headers'];
  readonly body: Buffer;
}

/** Answers one call, of which the body has been read. */
export type Answer = (response: ServerResponse, received: Received) => unknown;

/** A server whose next answers a test scripts, and which knows how many calls it had at a time. */
export class TestServer {
  readonly received: Received[] = [];
  /** Calls in progress, and the most that there were. */
  active = 0;
  peak = 0;
  /** Calls whose connection ended before their response did. */
  cut = 0;
  readonly url: string;
  readonly #server: ReturnType<typeof createServer>;
  #answers: Answer[] = [];
  #fallback: Answer = (response) => response.end('ok');

  private constructor(server: ReturnType<typeof createServer>) {
    this.#server = server;
    this.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    server.on('request', (request, response) => this.#serve(request, response));
  }

  static async start(): Promise<TestServer> {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    return new TestServer(server);
  }

  /** Scripts the next answers; the last one stays. */
  answers(...answers: Answer[]): void {
    this.#fallback = answers.at(-1) as Answer;
    this.#answers = answers.slice(0, -1);
  }

  /** Stops it, once no call is in progress. */
  async stop(): Promise<void> {
    await until(() => this.active === 0);
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  #serve(request: IncomingMessage, response: ServerResponse): void {
    this.peak = Math.max(this.peak, ++this.active);
    response.on('close', () => {
      this.active--;
      if (!response.writableFinished) this.cut++;
    });
    const chunks: Buffer[] = [];
    request.on('data', (chunk) => chunks.push(chunk));
    request.on('error', () => {});
    request.on('end', () => {
      const { method = '', url: path = '', headers } = request;
      const received = { method, path, headers, body: Buffer.concat(chunks) };
      this.received.push(received);
      (this.#answers.shift() ?? this.#fallback)(response, received);
    });
  }
}
