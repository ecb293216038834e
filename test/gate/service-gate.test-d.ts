import OpenAI from 'openai';
import { Agent, fetch as undiciFetch } from 'undici';
import { describe, expectTypeOf, it } from 'vitest';
import type { GateCallOptions } from '../../src/gate/gate-options.js';
import { longFetch } from '../../src/gate/long-fetch.js';
import { e2bPreset, openAiPreset } from '../../src/gate/presets.js';
import { ServiceGate } from '../../src/gate/service-gate.js';
import type { ToolGate } from '../../src/tools/tool-gate.js';

const gate = new ServiceGate({ name: 'llm', keys: ['a', { key: 'b', rate: [{ limit: 1, perMs: 1 }] }] });

describe('ServiceGate', () => {
  it('infers what a call gives', () => {
    expectTypeOf(gate.run(() => 7)).toEqualTypeOf<Promise<number>>();
    expectTypeOf(gate.run(async () => 'x')).toEqualTypeOf<Promise<string>>();
    expectTypeOf(gate.run(({ key, signal }) => fetch(key, { signal }))).toEqualTypeOf<Promise<Response>>();
  });

  it('infers the items of a stream, as an SDK gives it', () => {
    const openai = new OpenAI({ fetch: longFetch({ fetch: undiciFetch, Agent }) });
    const stream = gate.stream(({ signal }) =>
      openai.chat.completions.create({ model: 'm', messages: [], stream: true }, { signal }),
    );
    expectTypeOf(stream.next()).resolves.toExtend<IteratorResult<OpenAI.ChatCompletionChunk>>();
    expectTypeOf(stream).toExtend<AsyncDisposable>();
  });

  it('refuses misspelt options, and a cache key for a stream', () => {
    // @ts-expect-error misspelt
    void gate.run(() => 7, { prority: 1 });
    // @ts-expect-error a stream is not kept
    void gate.stream(async function* () {}, { cacheKey: 'k' });
    // @ts-expect-error misspelt
    new ServiceGate({ name: 'llm', rates: [] });
    // @ts-expect-error no such unit
    new ServiceGate({ name: 'llm', rate: [{ limit: 1, perMs: 1, unit: 'tokens' }] });
    // @ts-expect-error no such class
    new ServiceGate({ name: 'llm', classify: () => 'retry' });
    expectTypeOf<GateCallOptions>().not.toBeAny();
  });

  it('takes presets, and is what a tool takes for a gate', () => {
    new ServiceGate({ name: 'llm', ...openAiPreset(), adaptive: { max: 64 } });
    new ServiceGate({ name: 'e2b', ...e2bPreset(), maxConcurrent: 4 });
    expectTypeOf(gate).toExtend<ToolGate>();
  });
});
