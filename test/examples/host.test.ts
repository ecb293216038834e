import type { ChildProcess } from 'node:child_process';
import { text } from 'node:stream/consumers';
import { Sandbox } from '@e2b/code-interpreter';
import {
  type LlmRequest,
  type StubE2bOptions,
  type StubServices,
  startStubServices,
} from 'pipeline-pool/testing';
import { afterEach, describe, expect, it } from 'vitest';
import { serviceSettings } from '../../examples/host-clients.js';
import { scriptedModel } from '../../examples/scripted-model.js';
import { bundledExample } from '../support/examples.js';

const start = bundledExample('examples/host.ts');

// The test runner sets a BASE_URL of its own, and a developer may have real keys: neither is meant here.
const {
  BASE_URL: _base,
  API_KEY: _key,
  MODEL: _model,
  SERPER_API_KEY: _serper,
  SERPER_URL: _serperUrl,
  JINA_API_KEY: _jina,
  JINA_URL: _jinaUrl,
  E2B_API_KEY: _e2b,
  ...environment
} = process.env;

const LLM_KEY = 'the-key-of-the-llm';
const SERPER_KEYS = ['one-key-of-serper', 'another-key-of-serper'];
const JINA_KEY = 'the-key-of-jina';
const E2B_KEY = 'e2b_00112233445566778899';
const KEYS = [LLM_KEY, ...SERPER_KEYS, JINA_KEY, E2B_KEY];

let services: StubServices | undefined;
let child: ChildProcess | undefined;
afterEach(async () => {
  child?.kill('SIGKILL');
  await services?.stop();
  services = undefined;
});

/** Services of the test's own, which the host takes for real ones. */
async function realServices(e2b: StubE2bOptions = {}) {
  services = await startStubServices({
    llm: { reply: scriptedModel, keys: [LLM_KEY] },
    serper: { keys: SERPER_KEYS },
    jina: { keys: [JINA_KEY] },
    e2b,
  });
  const env = {
    BASE_URL: services.llm.baseUrl,
    API_KEY: LLM_KEY,
    SERPER_URL: services.serper.url,
    SERPER_API_KEY: SERPER_KEYS.join(', '),
    JINA_URL: services.jina.url,
    JINA_API_KEY: JINA_KEY,
    E2B_API_KEY: E2B_KEY,
    E2B_API_URL: services.e2b.url,
    E2B_SANDBOX_URL: services.e2b.url,
  };
  return { ...services, env };
}

function host(questions: readonly string[], env: Record<string, string> = {}) {
  const started = start(questions, { ...environment, ...env });
  child = started;
  let said = '';
  started.stdout.on('data', (chunk: Buffer) => {
    said += chunk.toString();
  });
  const output = text(started.stdout);
  const errors = text(started.stderr);
  const code = new Promise<number | null>((resolve) => started.on('close', resolve));
  /** What it has said in a line that begins like this. */
  const line = (beginning: string): Promise<string> =>
    expect
      .poll(() => said.split('\n').find((one) => one.startsWith(beginning)))
      .toBeDefined()
      .then(() =>
        said
          .split('\n')
          .find((one) => one.startsWith(beginning))!
          .slice(beginning.length),
      );
  const terminate = (): boolean => started.kill('SIGTERM');
  return { terminate, output, errors, code, line };
}

describe('the host application', () => {
  it('answers its questions with the tools that the model chooses, and reports its health', async () => {
    const { output, errors, code, line } = host([]);
    const health = await fetch(await line('Health: '));
    expect(health.status).toBe(200);
    expect(await health.json()).toMatchObject({ status: 'healthy', pool_size: 5 });
    expect(await errors).toBe('');
    expect(await code).toBe(0);
    const lines = (await output).split('\n');
    expect(lines).toContain('Concurrency: 3/10 active requests');
    expect(lines).toContain('Acquired pipeline instance 3 for task task-3');
    expect(lines).toContain('task-1: Answered "Why do glaciers look blue?" from 4 findings.');
    expect(lines).toContain('task-3: Answered "How deep is the sea?" from 4 findings.');
    expect(lines).toContain('Released pipeline instance 3 for task task-3');
    expect(lines).toContain('Drained: 0 instances are left.');
  });

  it('uses the services that the environment names, with their keys, and shows the keys nowhere', async () => {
    const { llm, serper, jina, e2b, env } = await realServices();
    const { output, errors, code } = host(['How high is the moon?'], env);
    expect(await errors).toBe('');
    expect(await code).toBe(0);
    expect(await output).toContain('task-1: Answered "How high is the moon?" from 4 findings.');
    expect(llm.stats().byKey).toMatchObject({ [LLM_KEY]: { calls: 4 } });
    expect(serper.stats().byKey).toMatchObject({
      [SERPER_KEYS[0]!]: { calls: 1 },
      [SERPER_KEYS[1]!]: { calls: 1 },
    });
    expect(jina.stats().byKey).toMatchObject({ [JINA_KEY]: { calls: 1 } });
    expect(Object.keys(e2b.stats().byKey)).toEqual([E2B_KEY]);
    expect(e2b.calls[0]?.body).toMatchObject({ metadata: { taskId: 'task-1' } });
    expect(e2b.sandboxes).toEqual([]);
    expect(await output).not.toMatch(new RegExp(KEYS.join('|')));
  });

  it('trims keys', async () => {
    services = await startStubServices({});
    const { serper, e2b } = serviceSettings(
      { SERPER_API_KEY: 'one, another ', E2B_API_KEY: E2B_KEY },
      services,
    );
    expect([serper.keys, e2b.keys]).toEqual([['one', 'another'], [E2B_KEY]]);
  });

  it('retries if a response breaks off, or is a 200 with an error inside', async () => {
    const { llm, serper, jina, env } = await realServices();
    serper.faultNext([
      { type: 'reset', when: 'mid-body' },
      { type: 'envelope', status: 500 },
    ]);
    jina.faultNext([
      { type: 'reset', when: 'mid-body' },
      { type: 'envelope', status: 500 },
    ]);
    const { output, errors, code } = host(['How high is the moon?'], env);
    expect(await errors).toBe('');
    expect(await code).toBe(0);
    expect(await output).toContain('task-1: Answered "How high is the moon?" from 4 findings.');
    expect([serper.stats().calls, jina.stats().calls]).toEqual([4, 3]);
    const { messages } = llm.calls.at(-1)!.body as LlmRequest;
    const found = messages.filter(({ role }) => role === 'tool').map(({ content }) => content);
    expect(found[0]).toContain('"title":"How high is the moon?: result 1"');
    expect(found[2]).toContain('What a stub read at');
  });

  it('kills the sandboxes of its task whose creation response was lost, and no others', async () => {
    const { e2b, env } = await realServices();
    const theirs = await Sandbox.create({ ...e2b.connection, metadata: { taskId: 'task-1' } });
    e2b.faultNext({ type: 'reset', when: 'mid-body' }, 'POST /v2/sandboxes');
    const { output, errors, code } = host(['one'], env);
    expect(await errors).toBe('');
    expect(await code).toBe(0);
    expect(await output).toMatch(/^task-1: Answered/m);
    expect(e2b.stats().byRoute['POST /v2/sandboxes']?.calls).toBe(3);
    expect(e2b.sandboxes.map(({ sandboxId }) => sandboxId)).toEqual([theirs.sandboxId]);
  });

  it('reports to the agent which tool failed, and serves the others', async () => {
    const { e2b, env } = await realServices();
    e2b.faultNext({ type: 'status', status: 400 });
    const { output, errors, code } = host(['one', 'two'], env);
    expect(await errors).toBe('');
    expect(await code).toBe(0);
    expect((await output).match(/^task-\d: I had to give up\. Tool python failed: 400/gm)).toHaveLength(1);
    expect((await output).match(/^task-\d: Answered/gm)).toHaveLength(1);
  });

  it('drains on SIGTERM: running tasks finish, health rejects callers, no sandbox is left', async () => {
    let finish = (): void => {};
    const finished = new Promise<void>((resolve) => {
      finish = resolve;
    });
    const { e2b, env } = await realServices({ execute: () => finished.then(() => ({ stdout: ['42'] })) });
    const { terminate, output, errors, code, line } = host(['one', 'two'], env);
    await expect.poll(() => e2b.sandboxes.length).toBe(2);
    const health = await line('Health: ');
    terminate();
    expect(await line('SIGTERM: ')).toBe('draining, 2 tasks are under way.');
    const response = await fetch(health);
    expect(response.status).toBe(503);
    expect(await response.json()).toMatchObject({ status: 'draining', active_requests: 2 });
    finish();
    expect(await code).toBe(0);
    expect(await errors).toBe('');
    expect((await output).match(/^task-\d: Answered/gm)).toHaveLength(2);
    expect(await output).toContain('Drained: 0 instances are left.');
    expect(e2b.sandboxes).toEqual([]);
  });

  it('aborts tasks that do not end in time, and kills their sandboxes', async () => {
    const { e2b, env } = await realServices({ execute: () => new Promise(() => {}) });
    const { terminate, output, errors, code } = host(['one', 'two', 'three'], { ...env, DRAIN_MS: '200' });
    await expect.poll(() => e2b.sandboxes.length).toBeGreaterThan(0);
    terminate();
    expect(await code).toBe(1);
    expect((await errors).match(/^task-\d failed: ManagerClosedError/gm)).toHaveLength(3);
    expect(await output).toContain('Drained: 0 instances are left.');
    expect(e2b.sandboxes).toEqual([]);
    expect(e2b.stats().inFlight).toBe(0);
  });
});
