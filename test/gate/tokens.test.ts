import { describe, expect, it } from 'vitest';
import { openAiPreset } from '../../src/gate/llm-presets.js';
import { ServiceGate } from '../../src/gate/service-gate.js';

/** The free part of the window that counts tokens. */
const freeOf = (gate: ServiceGate): number => gate.stats().keys[0]!.free;

describe('openAiPreset with tokensPerMinute', () => {
  const completion = (tokens: number) => ({ choices: [], usage: { total_tokens: tokens } });

  it('estimates a call, and corrects it from the usage of its result', async () => {
    const gate = new ServiceGate({ name: 'llm', ...openAiPreset({ tokensPerMinute: 1_000 }) });
    await gate.run(() => completion(300));
    expect(freeOf(gate)).toBeCloseTo(0.7);
    await gate.run(() => completion(300));
    expect(freeOf(gate)).toBeCloseTo(0.4);
    await gate.run(() => completion(300));
    // Another call of about 300 does not fit.
    await expect(gate.run(() => completion(300), { timeoutMs: 1_000 })).rejects.toMatchObject({
      code: 'ERR_KEYS_EXHAUSTED',
    });
    expect(gate.stats().attempts).toBe(3);
  });

  it('reads the usage of a stream from its last chunk', async () => {
    const gate = new ServiceGate({ name: 'llm', ...openAiPreset({ tokensPerMinute: 1_000 }) });
    const chunks = gate.stream(async function* () {
      yield { choices: [{ delta: {} }] };
      yield { choices: [], usage: { total_tokens: 250 } };
    });
    for await (const _ of chunks);
    expect(freeOf(gate)).toBeCloseTo(0.75);
  });

  it('keeps the usage that the host reports', async () => {
    const gate = new ServiceGate({ name: 'llm', ...openAiPreset({ tokensPerMinute: 1_000 }) });
    await gate.run(({ reportUsage }) => {
      reportUsage(100);
      return completion(300);
    });
    expect(freeOf(gate)).toBeCloseTo(0.9);
  });

  it.each([
    [
      'a response of the Responses API',
      { object: 'response', usage: { input_tokens: 100, output_tokens: 50 } },
    ],
    ['its total, where it has one', { usage: { input_tokens: 1, output_tokens: 1, total_tokens: 150 } }],
    ['a `Response` with JSON', () => Response.json({ usage: { total_tokens: 150 } })],
  ])('reads %s', async (_, result) => {
    const gate = new ServiceGate({ name: 'llm', ...openAiPreset({ tokensPerMinute: 1_000 }) });
    await gate.run(() => (typeof result === 'function' ? result() : result));
    expect(freeOf(gate)).toBeCloseTo(0.85);
  });

  it('leaves the body of a `Response` to the caller', async () => {
    const gate = new ServiceGate({ name: 'llm', ...openAiPreset({ tokensPerMinute: 1_000 }) });
    const read = await gate.run(() => Response.json(completion(150)));
    await expect(read.json()).resolves.toEqual(completion(150));
  });

  it('reads `response.completed` of a stream of the Responses API', async () => {
    const gate = new ServiceGate({ name: 'llm', ...openAiPreset({ tokensPerMinute: 1_000 }) });
    const events = gate.stream(async function* () {
      yield { type: 'response.created', response: { usage: null } };
      yield { type: 'response.output_text.delta', delta: 'Tides' };
      yield { type: 'response.completed', response: { usage: { input_tokens: 200, output_tokens: 50 } } };
    });
    for await (const _ of events);
    expect(freeOf(gate)).toBeCloseTo(0.75);
  });

  it('takes a lower usage only at the end of a stream, and a higher one at once', async () => {
    const gate = new ServiceGate({ name: 'llm', ...openAiPreset({ tokensPerMinute: 1_000 }) });
    const chunks = gate.stream(
      async function* () {
        for (const total of [100, 400, 200]) yield { choices: [], usage: { total_tokens: total } };
      },
      { weight: 300 },
    );
    const seen: number[] = [];
    for await (const _ of chunks) seen.push(freeOf(gate));
    expect([...seen, freeOf(gate)]).toEqual([0.7, 0.6, 0.6, 0.8]);
  });

  it('counts a stream that its reader leaves as estimated', async () => {
    const gate = new ServiceGate({ name: 'llm', ...openAiPreset({ tokensPerMinute: 1_000 }) });
    const chunks = gate.stream(
      async function* () {
        yield { choices: [], usage: { total_tokens: 100 } };
        yield { choices: [], usage: { total_tokens: 200 } };
      },
      { weight: 300 },
    );
    for await (const _ of chunks) break;
    expect(freeOf(gate)).toBeCloseTo(0.7);
  });

  it('estimates nothing where no window counts weight', async () => {
    const gate = new ServiceGate({ name: 'llm', ...openAiPreset() });
    await gate.run(() => completion(300));
    expect(freeOf(gate)).toBe(1);
  });
});

describe('the estimate of openAiPreset', () => {
  const { estimate } = openAiPreset();
  const text = 'four letters'.repeat(10);

  it.each<[string, object, number]>([
    ['messages', { messages: [{ content: text }], max_tokens: 70 }, 100],
    ['parts of messages', { messages: [{ content: [{ type: '', text }] }], max_completion_tokens: 70 }, 100],
    ['an input with instructions', { instructions: text, input: text, max_output_tokens: 40 }, 100],
    ['no maximum', { messages: [{ content: text }] }, 530],
    [
      'an image',
      { messages: [{ content: [{ image_url: { url: `data:image/png;base64,${text}` } }] }], max_tokens: 7 },
      7,
    ],
    ['a file', { input: [{ file_data: text, data: text }], max_output_tokens: 7 }, 7],
  ])('is the text of the request over four, and the longest response: %s', (_, request, tokens) => {
    expect(estimate?.(request)).toBe(tokens);
  });

  it('is unknown for what is no request', () => {
    expect([undefined, 'text', null].map((request) => estimate?.(request))).toEqual([
      undefined,
      undefined,
      undefined,
    ]);
  });

  it('can be the weight of a call', async () => {
    const preset = openAiPreset({ tokensPerMinute: 1_000 });
    const gate = new ServiceGate({ name: 'llm', ...preset });
    const request = { messages: [{ content: text }], max_tokens: 70 };
    await gate.run(() => 'no usage', { weight: preset.estimate?.(request) });
    expect(freeOf(gate)).toBeCloseTo(0.9);
  });
});

describe('`usage`', () => {
  it.each<[string, (value: unknown) => unknown]>([
    [
      'throws',
      () => {
        throw new Error('unreadable');
      },
    ],
    ['returns no number', () => 'many'],
    ['returns less than nothing', () => -1],
    ['returns no finite number', () => Number.NaN],
  ])('leaves the estimate as it is where it %s', async (_, usage) => {
    const gate = new ServiceGate({
      name: 'llm',
      rate: [{ limit: 1_000, perMs: 60_000, unit: 'weight' }],
      usage: usage as never,
    });
    await expect(gate.run(() => 'kept', { weight: 300 })).resolves.toBe('kept');
    expect(freeOf(gate)).toBeCloseTo(0.7);
  });
});
