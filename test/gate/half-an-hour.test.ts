import { describe, expect, it, vi } from 'vitest';
import { openAiPreset } from '../../src/gate/llm-presets.js';
import { ServiceGate } from '../../src/gate/service-gate.js';
import { defineTools } from '../../src/tools/define-tools.js';
import { pipelineFactory } from '../../src/tools/pipeline-factory.js';
import { onFakeTimers, settled } from '../support/fake-timers.js';
import { follow } from '../support/promises.js';

onFakeTimers();

const HALF_AN_HOUR = 1_800_000;

/** Never settles unless its signal aborts. */
const hang = ({ signal }: { signal: AbortSignal }) =>
  new Promise<never>((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));

/** A stream that gives so many items, and then never another. */
async function* stall(context: { signal: AbortSignal }, items: number) {
  for (let i = 0; i < items; i++) yield i;
  await hang(context);
}

const gateWith = (options: object = {}) =>
  new ServiceGate({ name: 'llm', maxConcurrent: 1, retry: { attempts: 1 }, ...options });

/** Asserts that it is pending at the last millisecond of half an hour, and over by then. */
async function expectHalfAnHour(work: Promise<unknown>, reason: object): Promise<void> {
  const followed = follow(work);
  await vi.advanceTimersByTimeAsync(HALF_AN_HOUR - 1);
  expect(followed.now).toEqual({ is: 'pending' });
  await vi.advanceTimersByTimeAsync(1);
  expect(followed.now).toMatchObject({ is: 'rejected', reason });
}

const ofAttempt = { code: 'ERR_GATE_TIMEOUT', scope: 'attempt', timeoutMs: HALF_AN_HOUR };
const ofCall = { code: 'ERR_GATE_TIMEOUT', scope: 'call', timeoutMs: HALF_AN_HOUR };

describe('half an hour', () => {
  it.each<[string, object, object, object]>([
    ["a gate's attemptTimeoutMs", { attemptTimeoutMs: HALF_AN_HOUR }, {}, ofAttempt],
    ["a gate's timeoutMs", { timeoutMs: HALF_AN_HOUR }, {}, ofCall],
    ["a call's timeoutMs", {}, { timeoutMs: HALF_AN_HOUR }, ofCall],
    ['openAiPreset', openAiPreset(), {}, ofAttempt],
  ])('as %s ends a call and a stream to the millisecond', async (_, options, call, reason) => {
    const gate = gateWith(options);
    await expectHalfAnHour(gate.run(hang, call), reason);
    await expectHalfAnHour(gate.stream((context) => stall(context, 0), call).next(), reason);
    expect(gate.stats()).toMatchObject({ running: 0, limiter: { active: 0 }, keys: [{ inUse: 0 }] });
    expect(vi.getTimerCount()).toBe(0);
  });

  it('is allowed for each item of a stream', async () => {
    const gate = gateWith({ attemptTimeoutMs: HALF_AN_HOUR });
    const stream = gate.stream((context) => stall(context, 2));
    await stream.next();
    await vi.advanceTimersByTimeAsync(2 * HALF_AN_HOUR);
    await expect(stream.next()).resolves.toEqual({ done: false, value: 1 });
    await expectHalfAnHour(stream.next(), ofAttempt);
    expect(vi.getTimerCount()).toBe(0);
  });

  it('accepts a response that arrives in the last millisecond', async () => {
    const gate = gateWith({ attemptTimeoutMs: HALF_AN_HOUR });
    const late = gate.run(
      () => new Promise((resolve) => setTimeout(() => resolve('late'), HALF_AN_HOUR - 1)),
    );
    await vi.advanceTimersByTimeAsync(HALF_AN_HOUR - 1);
    await expect(late).resolves.toBe('late');
  });

  it.each<[string, object, object]>([
    ['its own timeoutMs', { timeoutMs: HALF_AN_HOUR }, { code: 'ERR_TOOL_TIMEOUT', timeoutMs: HALF_AN_HOUR }],
    [
      'its own timeoutMs, behind a gate',
      { timeoutMs: HALF_AN_HOUR, gate: gateWith() },
      { code: 'ERR_TOOL_TIMEOUT', timeoutMs: HALF_AN_HOUR },
    ],
    [
      'the attemptTimeoutMs of its gate',
      { timeoutMs: 2 * HALF_AN_HOUR, gate: gateWith({ attemptTimeoutMs: HALF_AN_HOUR }) },
      { code: 'ERR_TOOL_FAILED', cause: ofAttempt },
    ],
  ])('is allowed for a tool by %s', async (_, options, reason) => {
    const tool = {
      connect: () => 1,
      call: (_client: number, _input: unknown, context: never) => hang(context),
    };
    const factory = pipelineFactory({ mainAgent: defineTools({ think: { ...tool, ...options } }) });
    const pipeline = await factory.create({ instanceId: 1 });
    await expectHalfAnHour(pipeline.mainAgentToolManager.call('think'), reason);
    await settled();
    expect(vi.getTimerCount()).toBe(0);
  });
});
