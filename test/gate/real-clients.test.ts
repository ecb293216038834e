import { Sandbox } from '@e2b/code-interpreter';
import OpenAI from 'openai';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import type { AttemptContext } from '../../src/gate/attempt.js';
import { openAiPreset } from '../../src/gate/llm-presets.js';
import type { ServiceGateOptions } from '../../src/gate/options.js';
import { e2bPreset, type GatePreset, jinaPreset, serperPreset } from '../../src/gate/presets.js';
import { ServiceGate } from '../../src/gate/service-gate.js';
import type { Fault } from '../../src/testing/fault.js';
import { type StubServices, startStubServices } from '../../src/testing/start-stub-services.js';
import { recorder } from '../support/hooks.js';

/** Known keys, as the services' clients take them. */
const [A, B] = ['e2b_00000000000000000000000a', 'e2b_00000000000000000000000b'] as const;
const MINUTE = 60_000;
const HOUR = 3_600_000;
/** The cooldown of a key if the service does not say. */
const UNSAID = 30_000;
/** The timeout of a call that hangs. Any other has no bound: the machine may be busy. */
const SHORT_MS = 400;

let stubs: StubServices;
beforeAll(async () => {
  stubs = await startStubServices();
  // The first call of a client loads its code, and would be late in a test of timeouts.
  for (const client of Object.values(clients)) await client.call(gateOf(client));
  stubs.resetStats();
});
afterAll(() => stubs.stop());
afterEach(async () => {
  stubs.resetStats();
  for (const { sandboxId } of stubs.e2b.sandboxes) await Sandbox.kill(sandboxId, stubs.e2b.connection);
});

interface Client {
  readonly preset: () => GatePreset;
  readonly stub: () => StubServices['llm' | 'serper' | 'jina' | 'e2b'];
  /** The route that faults apply to. */
  readonly route: string;
  /** Makes one call through a gate, as a host does, and returns its text. */
  readonly call: (gate: ServiceGate) => Promise<string>;
  readonly expectedText: RegExp;
}

const openai = (key: string) => new OpenAI({ baseURL: stubs.llm.baseUrl, apiKey: key, maxRetries: 0 });
const QUESTION = { model: 'm', messages: [{ role: 'user' as const, content: 'why?' }] };

const clients: Record<'whole' | 'stream' | 'serper' | 'jina' | 'e2b', Client> = {
  whole: {
    preset: openAiPreset,
    stub: () => stubs.llm,
    route: 'POST /v1/chat/completions',
    expectedText: /^This is the answer of a stub to: why\?$/,
    async call(gate) {
      const { choices } = await gate.run(({ key, signal }) =>
        openai(key).chat.completions.create(QUESTION, { signal }),
      );
      return choices[0]?.message.content ?? '';
    },
  },
  stream: {
    preset: openAiPreset,
    stub: () => stubs.llm,
    route: 'POST /v1/chat/completions',
    expectedText: /^This is the answer of a stub to: why\?$/,
    async call(gate) {
      const stream = gate.stream(({ key, signal }) =>
        openai(key).chat.completions.create({ ...QUESTION, stream: true }, { signal }),
      );
      let said = '';
      for await (const chunk of stream) said += chunk.choices[0]?.delta.content ?? '';
      return said;
    },
  },
  serper: {
    preset: serperPreset,
    stub: () => stubs.serper,
    route: 'POST /search',
    expectedText: /"title":"tides: result 1"/,
    async call(gate) {
      const response = await gate.run(({ key, signal }) =>
        fetch(`${stubs.serper.url}/search`, {
          method: 'POST',
          headers: { 'x-api-key': key, 'content-type': 'application/json' },
          body: JSON.stringify({ q: 'tides' }),
          signal,
        }),
      );
      return response.text();
    },
  },
  jina: {
    preset: jinaPreset,
    stub: () => stubs.jina,
    route: 'GET /*',
    expectedText: /"content":"What a stub read at https:\/\/a\.example\/\."/,
    async call(gate) {
      const response = await gate.run(({ key, signal }) => {
        const headers = { authorization: `Bearer ${key}`, accept: 'application/json' };
        return fetch(`${stubs.jina.url}/https://a.example/`, { headers, signal });
      });
      return response.text();
    },
  },
  e2b: {
    preset: () => e2bPreset({ createsPerSecond: 100 }),
    stub: () => stubs.e2b,
    route: 'POST /v2/sandboxes',
    expectedText: /^the result of 5 characters of code$/,
    call: (gate) => gate.run(inSandbox),
  },
};

async function inSandbox({ key, signal }: AttemptContext): Promise<string> {
  const sandbox = await Sandbox.create({ ...stubs.e2b.connection, apiKey: key, retries: 0, signal });
  try {
    return (await sandbox.runCode('1 + 1')).text ?? '';
  } finally {
    await sandbox.kill();
  }
}

/** A gate with two keys, of which the first is used first. */
function gateOf({ preset }: Client, options: Omit<Partial<ServiceGateOptions>, 'adaptive' | 'limiter'> = {}) {
  return new ServiceGate({
    name: 'service',
    ...preset(),
    attemptTimeoutMs: 10_000,
    keys: [A, B],
    maxConcurrent: 2,
    retry: { baseMs: 1, maxMs: 5 },
    cooldown: { baseMs: UNSAID },
    ...options,
  });
}

/** What is expected of a call whose first key fails. */
interface Expected {
  /** The `call:retried` event of the failed attempt. */
  readonly retried: object;
  /** The state of the first key then. */
  readonly state: 'ready' | 'cooldown' | 'exhausted' | 'quarantined';
  readonly cooldownMs?: number;
  /** The outcome of the call, if there is no other attempt. */
  readonly ends?: string;
}

const cooldown = (cooldownMs: number, status = 429, outcome = 'rate-limited'): Expected => ({
  retried: { class: outcome, status },
  state: 'cooldown',
  cooldownMs,
});
const exhausted = (status?: number): Expected => ({
  retried: { class: 'quota-exhausted', ...(status === undefined ? {} : { status }) },
  state: 'exhausted',
  cooldownMs: HOUR,
});
const quarantined = (status?: number): Expected => ({
  retried: { class: 'unauthorized', ...(status === undefined ? {} : { status }) },
  state: 'quarantined',
  cooldownMs: Number.POSITIVE_INFINITY,
});
/** A failure that does not affect the key. */
const waits = (status?: number): Expected => ({
  retried: { class: 'retryable', ...(status === undefined ? {} : { status }) },
  state: 'ready',
});
/** The call is over with this attempt. */
const over = (outcome: string, expected: Pick<Expected, 'state' | 'cooldownMs'> = { state: 'ready' }) => ({
  retried: {},
  ...expected,
  ends: outcome,
});

const status = (code: number, more: object = {}): Fault => ({ type: 'status', status: code, ...more });
const back = (as: 'seconds' | 'date' | 'milliseconds' | 'reset-requests' | 'reset-tokens'): Fault =>
  status(429, { retryAfter: { as, ms: MINUTE } });
const envelope = (code: number, more: object = {}): Fault => ({ type: 'envelope', status: code, ...more });
const event = (code: number, more: object = {}): Fault => ({ type: 'stream-error', status: code, ...more });
const QUOTA = { reason: 'quota' };
const hang: Fault = { type: 'no-headers' };
const stall: Fault = { type: 'stall' };
const cut: Fault = { type: 'reset', when: 'before-headers' };
const cutLater: Fault = { type: 'reset', when: 'mid-body' };

type Row = readonly [what: string, fault: Fault, expected: Expected];

/** Common to all responses of an LLM, streamed or not. */
const OF_AN_LLM: readonly Row[] = [
  ['a 429 with seconds', back('seconds'), cooldown(MINUTE)],
  ['a 429 with a date', back('date'), cooldown(MINUTE)],
  ['a 429 with milliseconds', back('milliseconds'), cooldown(MINUTE)],
  ['a 429 with the reset of requests', back('reset-requests'), cooldown(MINUTE)],
  ['a 429 with the reset of tokens', back('reset-tokens'), cooldown(MINUTE)],
  ['a 429 without a time', status(429), cooldown(UNSAID)],
  ['a 429 with a time of 0', status(429, { headers: { 'retry-after': '0' } }), cooldown(UNSAID)],
  [
    'a 429 that is not to be tried again',
    status(429, { headers: { 'x-should-retry': 'false', 'retry-after': '60' } }),
    over('rate-limited', { state: 'cooldown', cooldownMs: MINUTE }),
  ],
  ['an exhausted quota', status(429, QUOTA), exhausted(429)],
  ['a 401', status(401), quarantined(401)],
  ['a 403', status(403), quarantined(403)],
  ['a 500', status(500), waits(500)],
  [
    'a 500 with rate limit headers that show free capacity',
    status(500, {
      headers: { 'x-ratelimit-remaining-requests': '4999', 'x-ratelimit-reset-requests': '8.64s' },
    }),
    waits(500),
  ],
  ['a 503', status(503), cooldown(UNSAID, 503, 'retryable')],
  ['a 400', status(400), over('fatal')],
  ['no headers', hang, waits()],
  ['a connection cut at once', cut, waits()],
];

const MATRIX: Readonly<Record<keyof typeof clients, readonly Row[]>> = {
  whole: [
    ...OF_AN_LLM,
    ['a 429 under 200', envelope(429), cooldown(UNSAID)],
    ['an exhausted quota under 200', envelope(429, QUOTA), exhausted()],
    ['a 503 under 200', envelope(503), cooldown(UNSAID, 503, 'retryable')],
    ['a 401 under 200', envelope(401), quarantined(401)],
    ['a body that stalls', stall, waits()],
    ['a body that is cut', cutLater, waits()],
  ],
  stream: [
    ...OF_AN_LLM,
    ['a 429 in the first event', event(429), cooldown(UNSAID)],
    ['an exhausted quota in the first event', event(429, QUOTA), exhausted()],
    ['a 503 in the first event', event(503), cooldown(UNSAID, 503, 'retryable')],
    ['a 401 in the first event', event(401), quarantined(401)],
    ['a 400 in the first event', event(400), over('fatal')],
    // The SDK finds no event in it, so statuses cannot be distinguished.
    ['a 429 under 200', envelope(429), waits()],
    ['a 503 under 200', envelope(503), waits()],
    ['a stall after the first event', stall, over('timeout')],
    ['a cut after the first event', cutLater, over('retryable')],
  ],
  serper: [
    ['a 429', status(429), cooldown(UNSAID)],
    ['no credits', status(429, QUOTA), exhausted(429)],
    ['a 401', status(401), quarantined(401)],
    ['a 403', status(403), quarantined(403)],
    ['a 500', status(500), waits(500)],
    ['a 503', status(503), cooldown(UNSAID, 503, 'retryable')],
    ['a 400', status(400), over('fatal')],
    ['a 429 under 200', envelope(429), cooldown(UNSAID)],
    ['no credits under 200', envelope(429, QUOTA), exhausted(429)],
    ['no headers', hang, waits()],
    ['a body that stalls', stall, waits()],
    ['a connection cut at once', cut, waits()],
    ['a body that is cut', cutLater, waits()],
  ],
  jina: [
    ['a 429 with seconds', back('seconds'), cooldown(MINUTE)],
    ['a 429 with a date', back('date'), cooldown(MINUTE)],
    ['a 429 with milliseconds', back('milliseconds'), cooldown(MINUTE)],
    ['a 429 without a time', status(429), cooldown(UNSAID)],
    ['no balance', status(402), exhausted(402)],
    ['a 401', status(401), quarantined(401)],
    ["a page's 403", status(403), over('client-error')],
    ["a page's 422", status(422), over('client-error')],
    ['a 500', status(500), waits(500)],
    ['a 503', status(503), cooldown(UNSAID, 503, 'retryable')],
    ['a 429 under 200', envelope(429), cooldown(UNSAID)],
    ['no balance under 200', envelope(402), exhausted(402)],
    ['a 401 under 200', envelope(401), quarantined(401)],
    ['no headers', hang, waits()],
    ['a body that stalls', stall, waits()],
    ['a connection cut at once', cut, waits()],
    ['a body that is cut', cutLater, waits()],
  ],
  // The SDK keeps no headers: a retry time that E2B sends is lost.
  e2b: [
    ['a 429 for too many creations', back('seconds'), cooldown(UNSAID)],
    ['a 429 for too many sandboxes', status(429, QUOTA), cooldown(1_000, 429, 'retryable')],
    ['a 402', status(402), exhausted(402)],
    ['a 401', status(401), quarantined()],
    ['a 403', status(403), quarantined(403)],
    ['a 500', status(500), waits(500)],
    ['a 503', status(503), cooldown(UNSAID, 503, 'retryable')],
    ['a 400', status(400), over('fatal')],
    ['no headers', hang, waits()],
    ['a body that stalls', stall, waits()],
    ['a connection cut at once', cut, waits()],
    ['a body that is cut', cutLater, waits()],
  ],
};

const NAMES: readonly { readonly name: keyof typeof clients; readonly what: string }[] = [
  { name: 'whole', what: 'the OpenAI SDK' },
  { name: 'stream', what: 'the OpenAI SDK that streams' },
  { name: 'serper', what: 'fetch and Serper' },
  { name: 'jina', what: 'fetch and Jina' },
  { name: 'e2b', what: 'the E2B SDK' },
];

/** How often a key was used. */
const usesOf = ({ stub, route }: Client) =>
  [A, B].map((key) => stub().calls.filter((call) => call.route === route && call.key === key).length);

/** Asserts that nothing is held and no request is in flight. */
async function expectIdle(gate: ServiceGate, { stub }: Client): Promise<void> {
  const held = { running: 0, queuedForStart: 0, backingOff: 0, limiter: { active: 0, queued: 0 } };
  await expect.poll(() => gate.stats()).toMatchObject({ ...held, keys: [{ inUse: 0 }, { inUse: 0 }] });
  await expect.poll(() => stub().stats().inFlight).toBe(0);
}

describe.each(NAMES)('a gate in front of $what', ({ name }) => {
  const client = clients[name];

  it.each(MATRIX[name])('classifies %s', async (_, fault, expected) => {
    const { hooks, of } = recorder();
    const isSilent = fault === hang || fault === stall;
    const gate = gateOf(client, { hooks, ...(isSilent ? { attemptTimeoutMs: SHORT_MS } : {}) });
    client.stub().faultNext(fault, client.route);
    const call = client.call(gate);
    if (expected.ends === undefined) {
      await expect(call).resolves.toMatch(client.expectedText);
      expect(of('call:retried')).toMatchObject([expected.retried]);
      expect(of('call:finished')).toMatchObject([{ outcome: 'ok', attempts: 2 }]);
      expect(usesOf(client)).toEqual([1, 1]);
    } else {
      await call.catch(() => {});
      expect(of('call:retried')).toEqual([]);
      expect(of('call:finished')).toMatchObject([{ outcome: expected.ends, attempts: 1 }]);
      expect(usesOf(client)).toEqual([1, 0]);
    }
    const [first, second] = gate.stats().keys;
    expect([first?.state, second?.state]).toEqual([expected.state, 'ready']);
    if (expected.cooldownMs === Number.POSITIVE_INFINITY) expect(first?.cooldownMs).toBe(expected.cooldownMs);
    // A date has whole seconds, and the machine may be busy.
    else expect(Math.abs((first?.cooldownMs ?? 0) - (expected.cooldownMs ?? 0))).toBeLessThan(5_000);
    await expectIdle(gate, client);
    await gate.close();
  });

  it('spreads calls over its keys, and skips one in cooldown', async () => {
    const gate = gateOf(client);
    for (let i = 0; i < 4; i++) await client.call(gate);
    expect(usesOf(client)).toEqual([2, 2]);
    client.stub().faultNext(status(429), client.route);
    for (let i = 0; i < 3; i++) await expect(client.call(gate)).resolves.toMatch(client.expectedText);
    expect(usesOf(client)).toEqual([3, 5]);
    await expectIdle(gate, client);
  });

  it('releases everything if every attempt fails', async () => {
    const { hooks, of } = recorder();
    const gate = gateOf(client, { hooks });
    client.stub().faultNext([cut, cut, cut], client.route);
    await expect(client.call(gate)).rejects.toBeInstanceOf(Error);
    expect(usesOf(client)).toEqual([2, 1]);
    expect(of('call:finished')).toMatchObject([{ outcome: 'retryable', attempts: 3 }]);
    await expectIdle(gate, client);
  });

  it('releases everything if its caller aborts', async () => {
    const { hooks, of } = recorder();
    const gate = gateOf(client, { hooks, timeoutMs: SHORT_MS });
    client.stub().faultNext(hang, client.route);
    await expect(client.call(gate)).rejects.toMatchObject({ code: 'ERR_GATE_TIMEOUT', scope: 'call' });
    expect(of('call:finished')).toMatchObject([{ outcome: 'timeout', attempts: 1 }]);
    await expectIdle(gate, client);
  });
});
