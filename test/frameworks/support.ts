import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  findPoolError,
  type PipelineManager,
  type RequestContext,
  type RequestOptions,
  type ServiceGate,
  toHttpStatus,
} from 'pipeline-pool';
import { type LlmReply, type LlmRequest, StubLlm, StubSerper } from 'pipeline-pool/testing';
import { afterEach, describe, expect, it } from 'vitest';

interface Service {
  readonly url: string;
  readonly keys: readonly string[];
}

type Context = RequestContext<string[]>;

/** What each example makes. */
interface Research {
  readonly llm: ServiceGate;
  readonly search: ServiceGate;
  readonly manager: PipelineManager<string[]>;
  answer(
    context: Context,
    question: string,
  ): Promise<{ readonly text: string; readonly found: readonly string[] }>;
  stream(context: Context, question: string): AsyncGenerator<string>;
}

type CreateResearch = (given: { llm: Service; search: Service }) => Research;

const LLM_KEYS = ['llm-key-one', 'llm-key-two'];
const SEARCH_KEYS = ['search-key-one', 'search-key-two'];
const LONG = Array.from({ length: 300 }, (_, i) => `word${i}`).join(' ');

const contentOf = (content: unknown): string =>
  typeof content === 'string' ? content : JSON.stringify(content);

/** A model that searches for the question once, and then answers with what it has found. */
function searchingModel({ messages }: LlmRequest): LlmReply {
  const question = /question-\w+/.exec(contentOf(messages.findLast(({ role }) => role === 'user')?.content));
  const found = messages.findLast(({ role }) => role === 'tool');
  if (found === undefined)
    return { toolCalls: [{ name: 'search', arguments: { query: `${question?.[0]}` } }] };
  return `Found ${[...new Set(contentOf(found.content).match(/question-\w+/g))].join(' ')}. ${LONG}`;
}

/** The lines of code of an example beside its imports, its comments and its empty lines. */
export function linesOfHostCode(path: string): number {
  const code = readFileSync(path, 'utf8')
    .replace(/\/\*[\s\S]*?\*\//g, '')
    .replace(/^import [^;]*;$/gm, '');
  return code.split('\n').filter((line) => line.trim() !== '' && !line.trim().startsWith('//')).length;
}

/** The tests of an example. */
export function testFramework(name: string, createResearch: CreateResearch): void {
  describe(name, () => {
    const toClose: (() => unknown)[] = [];
    afterEach(async () => {
      for (const close of toClose.splice(0).reverse()) await close();
    });

    async function setUp(perTokenMs = 0) {
      const llm = await new StubLlm({
        keys: LLM_KEYS,
        latencyMs: 20,
        perTokenMs,
        reply: searchingModel,
      }).start();
      const serper = await new StubSerper({ keys: SEARCH_KEYS, latencyMs: 20 }).start();
      const research = createResearch({
        llm: { url: llm.baseUrl, keys: LLM_KEYS },
        search: { url: serper.url, keys: SEARCH_KEYS },
      });
      const answer = (question: string, options?: RequestOptions) =>
        research.manager.run(question, (context) => research.answer(context, question), options);
      const stream = (question: string) =>
        research.manager.stream(question, (context) => research.stream(context, question));
      toClose.push(
        () => llm.stop(),
        () => serper.stop(),
        () => research.manager.shutdown({ timeoutMs: 0 }),
      );
      const isIdle = async () => {
        await expect
          .poll(() => [
            research.llm.stats().running,
            research.search.stats().running,
            research.llm.stats().limiter?.queued,
            llm.stats().inFlight,
            serper.stats().inFlight,
          ])
          .toEqual([0, 0, 0, 0, 0]);
        // A call that the framework makes late would be in flight now.
        const before = llm.stats().calls;
        await sleep(50);
        expect([llm.stats().calls, llm.stats().inFlight]).toEqual([before, 0]);
      };
      return { llm, serper, research, answer, stream, isIdle };
    }

    it('is at most 40 lines of host code beside the imports', () => {
      expect(linesOfHostCode(`examples/frameworks/${name}/main.ts`)).toBeLessThanOrEqual(40);
    });

    it('makes each call through its gate, with a key of the gate, and mixes no state', async () => {
      const { llm, serper, research, answer, isIdle } = await setUp();
      const tasks = Array.from({ length: 20 }, (_, i) => `question-${i}x`);
      const answers = await Promise.all(tasks.map((question) => answer(question)));
      for (const [i, { text, found }] of answers.entries()) {
        expect(text).toMatch(new RegExp(`^Found ${tasks[i]}\\. `));
        expect(found).toHaveLength(1);
        expect(found[0]).toContain(tasks[i]);
      }
      expect(llm.stats()).toMatchObject({ calls: 40, statuses: { 200: 40 }, disconnects: 0 });
      expect(serper.stats()).toMatchObject({ calls: 20, statuses: { 200: 20 } });
      expect(Object.keys(llm.stats().byKey).sort()).toEqual(LLM_KEYS.toSorted());
      expect(Object.keys(serper.stats().byKey).sort()).toEqual(SEARCH_KEYS.toSorted());
      expect(llm.stats().peakInFlight).toBeLessThanOrEqual(4);
      expect(serper.stats().peakInFlight).toBeLessThanOrEqual(2);
      expect(research.llm.stats().calls).toBe(40);
      await isIdle();
    });

    it('keeps to the limits in streams', async () => {
      const { llm, stream, isIdle } = await setUp();
      const read = async (question: string) => {
        let text = '';
        for await (const part of stream(question)) text += part;
        return text;
      };
      const tasks = Array.from({ length: 12 }, (_, i) => `question-${i}x`);
      const texts = await Promise.all(tasks.map(read));
      for (const [i, text] of texts.entries()) expect(text).toBe(`Found ${tasks[i]}. ${LONG}`);
      expect(llm.stats()).toMatchObject({ calls: 24, statuses: { 200: 24 } });
      expect(llm.stats().peakInFlight).toBeLessThanOrEqual(4);
      await isIdle();
    });

    it('never shows the framework what the gate retries', async () => {
      const { llm, answer, isIdle } = await setUp();
      llm.faultNext({ type: 'status', status: 429 });
      llm.faultNext({ type: 'status', status: 500 });
      expect((await answer('question-a')).text).toContain('question-a');
      expect(llm.stats().statuses).toEqual({ 200: 2, 429: 1, 500: 1 });
      await isIdle();
    });

    it('ends the call in flight when its request is aborted', async () => {
      const { llm, answer, isIdle } = await setUp(1_000);
      const controller = new AbortController();
      const aborted = answer('question-a', { signal: controller.signal });
      await expect.poll(() => llm.stats().inFlight).toBe(1);
      controller.abort(new Error('the client left'));
      await expect(aborted).rejects.toThrow('the client left');
      await isIdle();
      expect(llm.stats()).toMatchObject({ calls: 1, disconnects: 1 });
    });

    it('frees the permit of a stream that its reader leaves', async () => {
      const { llm, stream, isIdle } = await setUp(50);
      for await (const part of stream('question-a')) {
        expect(part).not.toBe('');
        break;
      }
      await isIdle();
      expect(llm.stats()).toMatchObject({ calls: 2, disconnects: 1 });
    });

    it('leaves the error of a gate to findPoolError and toHttpStatus', async () => {
      const { llm, research, answer, isIdle } = await setUp();
      await research.llm.close();
      const error = await answer('question-a').catch((thrown: unknown) => thrown);
      expect(error).toBeInstanceOf(Error);
      expect(findPoolError(error)?.code).toBe('ERR_GATE_CLOSED');
      expect(toHttpStatus(error)).toMatchObject({ status: 503 });
      expect(llm.stats().calls).toBe(0);
      await isIdle();
    });

    it('leaves the error of a stream to findPoolError and toHttpStatus', async () => {
      const { research, stream, isIdle } = await setUp();
      await research.llm.close();
      const read = async () => {
        for await (const _ of stream('question-a'));
      };
      const error = await read().catch((thrown: unknown) => thrown);
      expect(findPoolError(error)?.code).toBe('ERR_GATE_CLOSED');
      expect(toHttpStatus(error)).toMatchObject({ status: 503 });
      await isIdle();
    });

    it('leaves the loss of the last key to findPoolError and toHttpStatus', async () => {
      const { llm, answer, isIdle } = await setUp();
      for (const _ of LLM_KEYS) llm.faultNext({ type: 'status', status: 401 });
      const error = await answer('question-a').catch((thrown: unknown) => thrown);
      expect(findPoolError(error)?.code).toBe('ERR_KEYS_EXHAUSTED');
      expect(toHttpStatus(error)).toMatchObject({ status: 503 });
      expect(llm.stats()).toMatchObject({ calls: 2, statuses: { 401: 2 } });
      await isIdle();
    });

    it('answers its model with the error of a tool', async () => {
      const { llm, serper, research, answer, isIdle } = await setUp();
      await research.search.close();
      expect(await answer('question-a')).toMatchObject({ found: [] });
      expect([llm.stats().calls, serper.stats().calls]).toEqual([2, 0]);
      expect(JSON.stringify(llm.calls.at(-1)?.body)).toContain('search is closed');
      await isIdle();
    });

    it('leaves a failure of the service to toHttpStatus', async () => {
      const { llm, answer, isIdle } = await setUp();
      llm.faultNext({ type: 'status', status: 400 });
      const error = await answer('question-a').catch((thrown: unknown) => thrown);
      expect(findPoolError(error)).toBeUndefined();
      expect(toHttpStatus(error)).toMatchObject({ status: 502 });
      expect(llm.stats().calls).toBe(1);
      await isIdle();
    });
  });
}
