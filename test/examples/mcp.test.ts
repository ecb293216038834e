import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { LifecycleHooks, PipelinePool, pipelineFactory, ToolFailedError } from 'pipeline-pool';
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest';
import { exampleTools, McpServer, mcpTools } from '../../examples/mcp.js';

const isAlive = (pid: number): boolean => {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
};

/** The home directories of the servers. */
const lodgings = mkdtempSync(join(tmpdir(), 'mcp-test-'));
let tools: Awaited<ReturnType<typeof exampleTools>>;
const pids = new Set<number>();

/** A pool of pipelines, with the processes of each. */
function setUp(size: number) {
  const hooks = new LifecycleHooks();
  const failures: unknown[] = [];
  hooks.on('tool:disconnect-failed', ({ error }) => failures.push(error));
  const factory = pipelineFactory({ mainAgent: tools, hooks });
  const pool = new PipelinePool({ size, ...factory });
  const serversOf = async (lease: Awaited<ReturnType<typeof pool.acquire>>) => {
    const { mainAgentToolManager } = lease.pipeline;
    const memory = await mainAgentToolManager.client('read_graph');
    const everything = await mainAgentToolManager.client('echo');
    for (const { pid } of [memory, everything]) pids.add(pid ?? 0);
    return { memory, everything };
  };
  return { pool, factory, failures, serversOf };
}

beforeAll(async () => {
  vi.stubEnv('TMPDIR', lodgings);
  tools = await exampleTools();
}, 120_000);

afterEach(() => {
  expect([...pids].filter(isAlive)).toEqual([]);
  expect(readdirSync(lodgings)).toEqual([]);
  pids.clear();
});

afterAll(() => {
  vi.unstubAllEnvs();
  rmSync(lodgings, { recursive: true, force: true });
});

describe('MCP servers as tools', () => {
  it('are called by the names and with the schemas that the servers publish', async () => {
    const { pool, serversOf } = setUp(1);
    const lease = await pool.acquire();
    await serversOf(lease);
    const { mainAgentToolManager } = lease.pipeline;
    expect(await mainAgentToolManager.answer('echo', '{"message":"hello"}')).toBe('Echo: hello');
    expect(await mainAgentToolManager.answer('echo', '{}')).toMatch(/^Tool echo failed: .*message/s);
    const definition = mainAgentToolManager.definitions().find(({ function: { name } }) => name === 'echo');
    expect(definition?.function.parameters).toMatchObject({ properties: { message: { type: 'string' } } });
    await lease.release();
    await pool.close();
  });

  it('belong to one instance each, and one process serves all tools of a server', async () => {
    const { pool, serversOf } = setUp(2);
    const [a, b] = [await pool.acquire(), await pool.acquire()];
    const [ofA, ofB] = [await serversOf(a), await serversOf(b)];
    expect(new Set([ofA.memory, ofA.everything, ofB.memory, ofB.everything].map(({ pid }) => pid)).size).toBe(
      4,
    );
    expect(await a.pipeline.mainAgentToolManager.client('create_entities')).toBe(ofA.memory);
    await Promise.all([a.release(), b.release()]);
    await pool.close();
  });

  it('never show one task the memory of another, neither at once nor one after the other', async () => {
    const { pool, serversOf } = setUp(2);
    const remembered = await Promise.all(
      ['a', 'b', 'c', 'd'].map((taskId) =>
        pool.use(
          async ({ mainAgentToolManager }, lease) => {
            await serversOf(lease);
            const entities = [{ name: taskId, entityType: 'task', observations: ['secret'] }];
            await mainAgentToolManager.call('create_entities', { entities });
            const graph = JSON.parse(await mainAgentToolManager.call('read_graph', {}));
            return graph.entities.map(({ name }: { name: string }) => name);
          },
          { taskId },
        ),
      ),
    );
    expect(remembered).toEqual([['a'], ['b'], ['c'], ['d']]);
    await pool.close();
  });

  it('leave no process when they hang', async () => {
    const { pool, serversOf, failures } = setUp(1);
    const lease = await pool.acquire();
    const { memory, everything } = await serversOf(lease);
    for (const { pid } of [memory, everything]) process.kill(pid ?? 0, 'SIGSTOP');
    const hangs = lease.pipeline.mainAgentToolManager.answer('read_graph', {}, { timeoutMs: 100 });
    expect(await hangs).toBe('Tool read_graph took longer than 100 ms and was stopped.');
    await pool.close({ timeoutMs: 0 }).catch(() => {});
    await expect.poll(() => [...pids].filter(isAlive)).toEqual([]);
    expect(failures).toEqual([]);
  });

  it('that are killed fail readably, and are replaced for the next task', async () => {
    const { pool, serversOf } = setUp(1);
    const lease = await pool.acquire();
    const { memory } = await serversOf(lease);
    const slow = lease.pipeline.mainAgentToolManager.call('trigger-long-running-operation', { duration: 60 });
    const { everything } = await serversOf(lease);
    for (const { pid } of [memory, everything]) process.kill(pid ?? 0, 'SIGKILL');
    await expect(slow).rejects.toThrow(ToolFailedError);
    expect(await lease.pipeline.mainAgentToolManager.answer('read_graph', {})).toMatch(
      /^Tool read_graph failed: /,
    );
    await lease.release();
    const next = await pool.acquire();
    await serversOf(next);
    expect(next.instanceId).not.toBe(lease.instanceId);
    expect(await next.pipeline.mainAgentToolManager.answer('read_graph', {})).toContain('entities');
    await next.release();
    await pool.close();
  });

  it('that never become ready leave no process', async () => {
    const mute = {
      command: process.execPath,
      args: ['-e', 'process.stdin.resume(); setInterval(() => {}, 1e6)'],
    };
    const deaf = { command: process.execPath, args: ['-e', 'setInterval(() => {}, 1e6)'] };
    for (const command of [mute, deaf]) {
      const gaveUp = AbortSignal.timeout(300);
      await expect(McpServer.start(command, gaveUp)).rejects.toThrow();
    }
    const absent = { command: '/no/such/server', args: [] };
    await expect(mcpTools(absent)).rejects.toThrow('ENOENT');
  });
});
