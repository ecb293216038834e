import type { LifecycleHooks } from 'pipeline-pool';
import type { Services } from './services.js';
import { ToolConnection, type ToolName } from './tool-server.js';

/** What one task did, line by line. */
export class TaskLog {
  readonly lines: { readonly of: string; readonly text: string }[] = [];

  constructor(readonly taskId: string) {}

  write(of: string, text: string): void {
    this.lines.push({ of, text });
  }

  /** Lines here that tell of another task. */
  get misplaced(): number {
    return this.lines.filter(({ of }) => of !== this.taskId).length;
  }
}

let toolCalls = 0;

/**
 * A small deep-research pipeline, written as such pipelines are: it keeps one connection to its tools, and the log of
 * the task at hand, which the next task replaces. Both are harmless for one task at a time.
 */
export class ResearchPipeline {
  readonly #services: Services;
  readonly #tools: ToolConnection;
  readonly #hooks: LifecycleHooks;
  readonly #instanceId: number;
  #log: TaskLog | undefined;

  constructor(services: Services, toolPort: number, hooks: LifecycleHooks, instanceId: number) {
    this.#services = services;
    this.#tools = new ToolConnection(toolPort);
    this.#hooks = hooks;
    this.#instanceId = instanceId;
  }

  setTaskLog(log: TaskLog | undefined): void {
    this.#log = log;
  }

  async research(taskId: string, question: string, signal?: AbortSignal): Promise<string> {
    const query = await this.#ask(taskId, `One search query for: ${question}`, signal);
    const found = (await this.#call(taskId, 'search', query, signal)) as readonly string[];
    const pages = await Promise.all(
      found.slice(0, 2).map((url) => this.#call(taskId, 'read', url, signal) as Promise<string>),
    );
    const figures = await this.#call(taskId, 'python', `print(${pages.join('').length})`, signal);
    return this.#ask(taskId, `Answer "${question}" from ${found.join(', ')} and ${figures}`, signal);
  }

  close(): void {
    this.#tools.close();
  }

  async #ask(taskId: string, content: string, signal?: AbortSignal): Promise<string> {
    const { llm, model } = this.#services;
    const completion = await llm.chat.completions.create(
      { model, messages: [{ role: 'user', content }] },
      { signal },
    );
    this.#log?.write(taskId, 'the model answered');
    return completion.choices[0]?.message.content ?? '';
  }

  async #call(taskId: string, tool: ToolName, input: string, signal?: AbortSignal): Promise<unknown> {
    const ids = { taskId, instanceId: this.#instanceId, toolCallId: ++toolCalls };
    const call = { source: 'tool connection', taskId, toolCallId: ids.toolCallId, callId: ids.toolCallId };
    const began = performance.now();
    let waitMs = 0;
    this.#hooks.emit('tool:started', { source: 'tools', tool, ...ids });
    let outcome: 'ok' | 'failed' = 'failed';
    try {
      const onTurn = (): void => {
        waitMs = performance.now() - began;
        this.#hooks.emit('call:started', { ...call, attempt: 1, waitMs });
      };
      const result = await this.#tools.call(tool, input, { signal, onTurn });
      outcome = 'ok';
      return result;
    } finally {
      const durationMs = performance.now() - began;
      const ended = outcome === 'ok' ? 'ok' : 'stop';
      this.#hooks.emit('call:finished', {
        ...call,
        outcome: ended,
        attempts: 1,
        durationMs,
        waitMs,
        cache: 'off',
      });
      this.#hooks.emit('tool:finished', { source: 'tools', tool, ...ids, outcome, durationMs });
      // Into whichever log is set by now: of this task, if nobody else uses this pipeline.
      this.#log?.write(taskId, `${tool} finished`);
    }
  }
}
