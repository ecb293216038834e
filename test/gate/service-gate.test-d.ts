import OpenAI from 'openai';
import { Agent, fetch as undiciFetch } from 'undici';
import { describe, expectTypeOf, it } from 'vitest';
import { openAiPreset } from '../../src/gate/llm-presets.js';
import { longFetch } from '../../src/gate/long-fetch.js';
import type { GateCallOptions } from '../../src/gate/options.js';
import { e2bPreset } from '../../src/gate/presets.js';
import { ServiceGate } from '../../src/gate/service-gate.js';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import type { ToolGate } from '../../src/tools/define-tools.js';

const gate = new ServiceGate({ name: 'llm', keys: ['a', { key: 'b', rate: [{ limit: 1, perMs: 1 }] }] });

describe('ServiceGate', () => {
  it('infers the result of a call', () => {
    expectTypeOf(gate.run(() => 7)).toEqualTypeOf<Promise<number>>();
    expectTypeOf(gate.run(async () => 'x')).toEqualTypeOf<Promise<string>>();
    expectTypeOf(gate.run(({ key, signal }) => fetch(key, { signal }))).toEqualTypeOf<Promise<Response>>();
  });

  it('infers the items of a stream that an SDK returns', () => {
    const openai = new OpenAI({ fetch: longFetch({ fetch: undiciFetch, Agent }) });
    const stream = gate.stream(({ signal }) =>
      openai.chat.completions.create({ model: 'm', messages: [], stream: true }, { signal }),
    );
    expectTypeOf(stream.next()).resolves.toExtend<IteratorResult<OpenAI.ChatCompletionChunk>>();
    expectTypeOf(stream).toExtend<AsyncDisposable>();
  });

  it('rejects misspelled options, and a cache key for a stream', () => {
    // @ts-expect-error misspelled
    void gate.run(() => 7, { prority: 1 });
    // @ts-expect-error a stream is not cached
    void gate.stream(async function* () {}, { cacheKey: 'k' });
    // @ts-expect-error misspelled
    new ServiceGate({ name: 'llm', rates: [] });
    // @ts-expect-error no such unit
    new ServiceGate({ name: 'llm', rate: [{ limit: 1, perMs: 1, unit: 'tokens' }] });
    // @ts-expect-error no such class
    new ServiceGate({ name: 'llm', classify: () => 'retry' });
    expectTypeOf<GateCallOptions>().not.toBeAny();
  });

  it('accepts at most one of `maxConcurrent`, `adaptive` and `limiter`', () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
    new ServiceGate({ name: 'llm', maxConcurrent: 1 });
    new ServiceGate({ name: 'llm', adaptive: { max: 8 } });
    new ServiceGate({ name: 'llm', limiter });
    new ServiceGate({ name: 'llm', maxConcurrent: undefined, adaptive: undefined, limiter: undefined });
    // @ts-expect-error two of them
    new ServiceGate({ name: 'llm', maxConcurrent: 1, limiter });
    // @ts-expect-error two of them
    new ServiceGate({ name: 'llm', maxConcurrent: 1, adaptive: {} });
    // @ts-expect-error two of them
    new ServiceGate({ name: 'llm', adaptive: {}, limiter });
  });

  it('accepts `undefined` for an option that is omitted', () => {
    new ServiceGate({ name: 'llm', rate: undefined, keys: undefined, cooldown: { baseMs: undefined } });
    void gate.run(() => 7, { signal: undefined, tenant: undefined, cacheKey: undefined });
    void gate.stream(async function* () {}, { timeoutMs: undefined });
  });

  it('accepts presets, and is accepted by a tool as its gate', () => {
    new ServiceGate({ name: 'llm', ...openAiPreset(), adaptive: { max: 64 } });
    new ServiceGate({ name: 'e2b', ...e2bPreset(), maxConcurrent: 4 });
    expectTypeOf(gate).toExtend<ToolGate>();
  });
});
