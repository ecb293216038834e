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

  /** Lines here that belong to another task. */
  get misplaced(): number {
    return this.lines.filter(({ of }) => of !== this.taskId).length;
  }
}

let calls = 0;

/**
 * A small deep-research pipeline, written as such pipelines are: it keeps one connection to its tools, and the log of
 * the current task, which the next task replaces. Both are correct for one task at a time.
 */
export class ResearchPipeline {
  readonly #services: Services;
  readonly #tools: ToolConnection;
  readonly #hooks: LifecycleHooks;
  #log: TaskLog | undefined;

  constructor(services: Services, toolPort: number, hooks: LifecycleHooks) {
    this.#services = services;
    this.#tools = new ToolConnection(toolPort);
    this.#hooks = hooks;
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
    const messages = [{ role: 'user' as const, content }];
    const completion = await this.#watched('LLM', taskId, (onTurn) => {
      onTurn();
      return llm.chat.completions.create({ model, messages }, { signal });
    });
    this.#log?.write(taskId, 'the model answered');
    return completion.choices[0]?.message.content ?? '';
  }

  async #call(taskId: string, tool: ToolName, input: string, signal?: AbortSignal): Promise<unknown> {
    const result = await this.#watched('tool connection', taskId, (onTurn) =>
      this.#tools.call(tool, input, { signal, onTurn }),
    );
    // Into the log that is set now: that of this task, if no other task uses this pipeline.
    this.#log?.write(taskId, `${tool} finished`);
    return result;
  }

  /** Reports a call, so that a timeline can show when it waited and when it was served. */
  async #watched<R>(source: string, taskId: string, call: (onTurn: () => void) => Promise<R>): Promise<R> {
    const ids = { source, taskId, callId: ++calls };
    const began = performance.now();
    let waitMs = 0;
    let outcome: 'ok' | 'fatal' = 'fatal';
    try {
      const result = await call(() => {
        waitMs = performance.now() - began;
        this.#hooks.emit('call:started', { ...ids, attempt: 1, waitMs });
      });
      outcome = 'ok';
      return result;
    } finally {
      const durationMs = performance.now() - began;
      this.#hooks.emit('call:finished', { ...ids, outcome, attempts: 1, durationMs, waitMs, cache: 'off' });
    }
  }
}
