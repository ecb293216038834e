import { readFileSync } from 'node:fs';
import { setImmediate as turn } from 'node:timers/promises';
import {
  Budget,
  ConcurrencyLimiter,
  createPipelineManager,
  findPoolError,
  PipelinePoolError,
  type PipelinePoolErrorCode,
  ServiceGate,
  toHttpStatus,
} from 'pipeline-pool';
import { StubLlm } from 'pipeline-pool/testing';
import { afterEach, beforeEach, describe, expect, it, onTestFinished, vi } from 'vitest';
import { type Asked, clients } from './clients.js';

/** What docs/frameworks.md says of each client. */
const MEASURED: Readonly<Record<string, Measured>> = {
  openai: { requests: 3, requestsIfAdvised: 1, leftStream: 'cancelled' },
  langchain: { requests: 7, requestsIfAdvised: 7, leftStream: 'cancelled' },
  'ai-sdk': { requests: 3, requestsIfAdvised: 3, leftStream: 'read to its end' },
  'openai-agents': { requests: 3, requestsIfAdvised: 1, leftStream: 'cancelled' },
};

interface Measured {
  /** Requests for one call that always fails, with the default retries. */
  readonly requests: number;
  /** The same where each response says `x-should-retry: false`. */
  readonly requestsIfAdvised: number;
  /** What becomes of a stream that its reader leaves, outside a request. */
  readonly leftStream: 'cancelled' | 'read to its end';
}

const baseURL = 'http://localhost/v1';
const held = (options: { acquireTimeoutMs?: number; maxQueue?: number }) => {
  const limiter = new ConcurrencyLimiter({ maxConcurrent: 1, ...options });
  limiter.tryAcquire();
  return limiter;
};
/** A limiter that rejects with an error of which the figures do not matter here. */
const rejecting = (code: PipelinePoolErrorCode) =>
  Object.assign(new ConcurrencyLimiter({ maxConcurrent: 1 }), {
    tryAcquire: () => undefined,
    acquire: () => Promise.reject(new PipelinePoolError(code, 'llm', 'no')),
  });
const gateOn = (limiter: ConcurrencyLimiter) => new ServiceGate({ name: 'llm', limiter });

/** Every kind of rejection that a gate makes, its HTTP status, and a `fetch` that always gets it. */
const REJECTIONS: readonly [
  PipelinePoolErrorCode,
  number,
  () => typeof fetch | Promise<typeof fetch>,
  retryAfterSeconds?: number,
][] = [
  ['ERR_QUEUE_FULL', 429, () => gateOn(held({ maxQueue: 0 })).fetch()],
  ['ERR_ACQUIRE_TIMEOUT', 504, () => gateOn(held({ acquireTimeoutMs: 10 })).fetch()],
  ['ERR_DEADLINE_UNMEETABLE', 429, () => gateOn(rejecting('ERR_DEADLINE_UNMEETABLE')).fetch()],
  ['ERR_LIMITS_UNAVAILABLE', 503, () => gateOn(rejecting('ERR_LIMITS_UNAVAILABLE')).fetch()],
  [
    'ERR_LIMITER_CLOSED',
    503,
    async () => {
      const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
      await limiter.close();
      return gateOn(limiter).fetch();
    },
  ],
  [
    'ERR_GATE_TIMEOUT',
    504,
    () =>
      new ServiceGate({ name: 'llm', maxConcurrent: 1, timeoutMs: 10 }).fetch({
        fetch: () => new Promise(() => {}),
      }),
  ],
  [
    'ERR_BUDGET_EXCEEDED',
    429,
    () => {
      const budget = new Budget({ calls: 0 });
      return new ServiceGate({ name: 'llm', maxConcurrent: 1 }).fetch({ options: () => ({ budget }) });
    },
  ],
  // The circuit breaker of the service is open.
  [
    'ERR_KEYS_EXHAUSTED',
    503,
    async () => {
      const gate = new ServiceGate({ name: 'llm', maxConcurrent: 1, timeoutMs: 10_000 });
      const headers = { 'retry-after': '40' };
      await gate.run(() => new Response('', { status: 429, headers }), { timeoutMs: 20_000 });
      return gate.fetch();
    },
    40,
  ],
  [
    'ERR_GATE_CLOSED',
    503,
    async () => {
      const gate = new ServiceGate({ name: 'llm', maxConcurrent: 1 });
      await gate.close();
      return gate.fetch();
    },
  ],
];

/** How it ends; the backoff of clients takes no time. */
async function outcomeOf(work: Promise<unknown>): Promise<unknown> {
  let isSettled = false;
  const outcome = work.then(
    () => 'no error',
    (error: unknown) => error,
  );
  void outcome.then(() => {
    isSettled = true;
  });
  while (!isSettled) {
    await turn();
    await vi.advanceTimersByTimeAsync(1_000);
  }
  return outcome;
}

/** Everything that a client still has in mind. */
async function passMinutes(): Promise<void> {
  for (let second = 0; second < 200; second++) {
    await vi.advanceTimersByTimeAsync(1_000);
    await turn();
  }
}

describe.each(Object.entries(clients))('%s', (name, { ask, stream }) => {
  const { requests, requestsIfAdvised, leftStream } = MEASURED[name]!;
  const signal = () => new AbortController().signal;

  describe('with a backoff that takes no time', () => {
    beforeEach(() => void vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] }));
    afterEach(() => void vi.useRealTimers());

    /** What reaches a service that always fails. */
    async function requestsOf(
      asked: Partial<Asked>,
      headers: Record<string, string> = {},
      onRequest = () => {},
    ) {
      let received = 0;
      const fetch: typeof globalThis.fetch = async (_, init) => {
        init?.signal?.throwIfAborted();
        received++;
        onRequest();
        return Response.json({ error: { message: 'no' } }, { status: 500, headers });
      };
      const error = await outcomeOf(ask({ fetch, signal: signal(), baseURL, ...asked }));
      await passMinutes();
      return { received, error };
    }

    it('sends as many requests for one call as documented', async () => {
      const byDefault = await requestsOf({});
      const advised = await requestsOf({}, { 'x-should-retry': 'false' });
      const without = await requestsOf({ maxRetries: 0 });
      expect([byDefault.received, advised.received, without.received]).toEqual([
        requests,
        requestsIfAdvised,
        1,
      ]);
      for (const { error } of [byDefault, advised, without])
        expect([findPoolError(error), toHttpStatus(error)?.status]).toEqual([undefined, 502]);
    });

    it('sends no request after an abort, whatever its retries', async () => {
      const controller = new AbortController();
      const onRequest = () => setTimeout(() => controller.abort(new Error('left')), 5);
      const { received, error } = await requestsOf({ signal: controller.signal }, {}, onRequest);
      expect(received).toBe(1);
      expect([findPoolError(error), toHttpStatus(error)]).toEqual([undefined, undefined]);
    });

    it('throws an error that is neither of this library nor of the service when it is aborted', async () => {
      const controller = new AbortController();
      const gate = new ServiceGate({ name: 'llm', maxConcurrent: 1 });
      let received = 0;
      const fetch = gate.fetch({
        fetch: (_: unknown, init: RequestInit) => {
          received++;
          return new Promise((_, reject) => {
            init.signal?.addEventListener('abort', () => reject(init.signal?.reason));
            controller.abort(new Error('left'));
          });
        },
      });
      const error = await outcomeOf(ask({ fetch, signal: controller.signal, baseURL }));
      await passMinutes();
      expect([received, gate.stats().running]).toEqual([1, 0]);
      expect(error).toBeInstanceOf(Error);
      expect([findPoolError(error), toHttpStatus(error)]).toEqual([undefined, undefined]);
    });

    describe.each([
      ['its default retries', undefined],
      ['no retries', 0],
    ])('with %s', (_, maxRetries) => {
      it.each(REJECTIONS)(
        'leaves %s to findPoolError, and %i to toHttpStatus',
        async (code, status, open, after) => {
          const gated = await open();
          let asked = 0;
          const fetch: typeof globalThis.fetch = (input, init) => {
            asked++;
            return gated(input, init);
          };
          const error = await outcomeOf(ask({ fetch, signal: signal(), baseURL, maxRetries }));
          expect(error).toBeInstanceOf(Error);
          expect(findPoolError(error)?.code).toBe(code);
          expect(toHttpStatus(error)?.status).toBe(status);
          // Half of it at most has passed.
          if (after !== undefined) {
            const seconds = toHttpStatus(error)?.retryAfterSeconds;
            expect(seconds).toBeGreaterThan(after / 2);
            expect(seconds).toBeLessThanOrEqual(after);
          }
          expect(asked).toBe(maxRetries === 0 ? 1 : requestsIfAdvised);
        },
      );
    });
  });

  /** A stub whose answer takes so long for each of its 300 words, and a gate in front of it. */
  async function streaming(perTokenMs: number) {
    const reply = Array.from({ length: 300 }, (_, i) => `word${i} `).join('');
    const llm = await new StubLlm({ perTokenMs, reply: () => reply }).start();
    const gate = new ServiceGate({ name: 'llm', maxConcurrent: 1 });
    onTestFinished(() => llm.stop());
    onTestFinished(() => gate.close());
    const isIdle = () => expect.poll(() => [gate.stats().running, llm.stats().inFlight]).toEqual([0, 0]);
    return { llm, isIdle, asked: { fetch: gate.fetch(), signal: signal(), baseURL: llm.baseUrl } };
  }

  it('leaves nothing behind of a stream that is left', async () => {
    // A stream that is cancelled must not end before that.
    const { llm, isIdle, asked } = await streaming(leftStream === 'cancelled' ? 50 : 2);
    for await (const part of await stream(asked)) if (part !== '') break;
    await isIdle();
    expect(llm.stats()).toMatchObject({ calls: 1, disconnects: leftStream === 'cancelled' ? 1 : 0 });
  });

  it('is ended with its request, the signal of which it does not have', async () => {
    const { llm, isIdle, asked } = await streaming(50);
    const manager = createPipelineManager({ config: { poolSize: 1 }, create: () => ({}) });
    onTestFinished(() => manager.shutdown());
    const items = manager.stream('task-1', async function* () {
      yield* await stream(asked);
    });
    for await (const part of items) if (part !== '') break;
    await isIdle();
    expect(llm.stats()).toMatchObject({ calls: 1, disconnects: 1 });
  });

  it('is documented as measured', () => {
    const docs = readFileSync('docs/frameworks.md', 'utf8');
    expect(docs).toMatch(
      new RegExp(
        `^\\| [^|]*\`${name}\`[^|]* \\| ${requests} \\| ${requestsIfAdvised} \\|.*\\| ${leftStream}[^|]*\\|$`,
        'm',
      ),
    );
  });
});
