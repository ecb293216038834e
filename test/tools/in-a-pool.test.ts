import { describe, expect, it } from 'vitest';
import { CreateError, LeaseReleasedError } from '../../src/errors.js';
import { PipelinePool } from '../../src/pool/pipeline-pool.js';
import type { ConnectContext } from '../../src/tools/define-tools.js';
import { defineTools } from '../../src/tools/define-tools.js';
import { pipelineFactory } from '../../src/tools/pipeline-factory.js';
import { deferred, microtasks } from '../support/promises.js';

/** What a task has written down, on a client of its own or of its instance. */
class Notebook {
  static open = 0;
  readonly lines: string[] = [];
  constructor() {
    Notebook.open++;
  }
}

const close = (): void => {
  Notebook.open--;
};

const tools = defineTools({
  own: {
    scope: 'task',
    connect: () => new Notebook(),
    disconnect: close,
    call: (notebook, line: string) => [...notebook.lines, notebook.lines.push(line) && line],
  },
  instances: {
    connect: () => new Notebook(),
    disconnect: close,
    reset: (notebook) => {
      notebook.lines.length = 0;
    },
    check: () => true,
    call: async (notebook, line: string) => {
      await undefined;
      notebook.lines.push(line);
      return [...notebook.lines];
    },
  },
});

describe('a pool of tool managers', () => {
  it('gives every task clean tools, for any number of tasks and instances', async () => {
    const factory = pipelineFactory({ mainAgent: tools, outputFormatter: ({ taskId }) => taskId });
    const pool = new PipelinePool({ size: 3, ...factory });
    const tasks = Array.from({ length: 60 }, (_, i) => `task-${i}`);
    await Promise.all(
      tasks.map((taskId) =>
        pool.use(
          async ({ mainAgentToolManager, outputFormatter }) => {
            expect(outputFormatter).toBe(taskId);
            for (const name of ['own', 'instances'] as const) {
              await mainAgentToolManager.call(name, `${taskId} first`);
              const lines = await mainAgentToolManager.call(name, `${taskId} second`);
              expect(lines).toEqual([`${taskId} first`, `${taskId} second`]);
            }
          },
          { taskId },
        ),
      ),
    );
    expect(pool.stats().live).toBeLessThanOrEqual(3);
    await pool.close();
    await factory.close();
    expect(Notebook.open).toBe(0);
  });

  it('rejects late calls by code of an earlier task', async () => {
    const factory = pipelineFactory({ mainAgent: tools });
    const pool = new PipelinePool({ size: 1, ...factory });
    const first = await pool.acquire({ taskId: 'a' });
    const kept = first.pipeline.mainAgentToolManager;
    await kept.call('own', 'mine');
    await first.release();
    const second = await pool.acquire({ taskId: 'b' });
    expect(second.instanceId).toBe(first.instanceId);
    await expect(kept.call('own', 'late')).rejects.toThrow(LeaseReleasedError);
    await expect(kept.call('instances', 'late')).rejects.toThrow(LeaseReleasedError);
    expect(await second.pipeline.mainAgentToolManager.call('instances', 'mine')).toEqual(['mine']);
    await second.release();
    await pool.close();
    expect(Notebook.open).toBe(0);
  });

  it('replaces an instance on which code of an earlier task keeps running', async () => {
    const stuck = deferred<string>();
    const factory = pipelineFactory({
      mainAgent: defineTools({
        slow: { connect: ({ instanceId }: ConnectContext) => instanceId, call: () => stuck.promise },
      }),
    });
    const pool = new PipelinePool({ size: 1, resetTimeoutMs: 20, ...factory });
    const first = await pool.acquire();
    first.pipeline.mainAgentToolManager.call('slow').catch(() => {});
    await microtasks();
    const second = pool.acquire();
    await first.release();
    expect((await second).instanceId).not.toBe(first.instanceId);
    stuck.resolve('at last');
    await (await second).release();
    await pool.close();
  });

  it('names the tool when an instance cannot be created', async () => {
    const factory = pipelineFactory({
      mainAgent: defineTools({
        browse: { connect: () => Promise.reject(new Error('no display')), call: () => 1 },
      }),
    });
    const pool = new PipelinePool({ size: 1, ...factory });
    const error = await pool.acquire().catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(CreateError);
    expect(error).toMatchObject({ cause: { code: 'ERR_TOOL_FAILED', tool: 'browse', stage: 'connect' } });
    await pool.close();
  });
});
