import { randomUUID } from 'node:crypto';
import { Sandbox } from '@e2b/code-interpreter';
import type { ServiceSettings } from './host-clients.js';

/** The addresses of E2B, where they are not the SDK's defaults. */
type E2bUrls = Omit<ServiceSettings['e2b'], 'keys'>;

/** The sandboxes of one task: each program has its own, which does not outlive its call. */
export class TaskSandboxes {
  readonly #urls: E2bUrls;
  /** `run` distinguishes them from those of another process that also counts its tasks from 1. */
  readonly #metadata: Record<string, string>;
  readonly #creations: { readonly apiKey: string; readonly sandbox: Promise<Sandbox> }[] = [];

  constructor({ keys: _, ...urls }: ServiceSettings['e2b'], taskId: string) {
    this.#urls = urls;
    this.#metadata = { taskId, run: randomUUID() };
  }

  async runPython(code: string, { key, signal }: { key: string; signal: AbortSignal }): Promise<string> {
    const sandbox = await this.#create(key);
    const end = (): Promise<unknown> =>
      sandbox.kill().catch((error: unknown) => console.warn(`A sandbox is left to its timeout: ${error}`));
    // `runCode` takes no signal, but it ends with its sandbox.
    signal.addEventListener('abort', end, { once: true });
    try {
      signal.throwIfAborted();
      const { logs, error } = await sandbox.runCode(code);
      return error === undefined ? logs.stdout.join('') : error.traceback;
    } catch (error) {
      // Only a creation is retryable; a gate does not retry our own errors.
      throw new Error(`The program did not end: ${error instanceof Error ? error.message : error}`);
    } finally {
      signal.removeEventListener('abort', end);
      await end();
    }
  }

  /** Kills orphaned sandboxes: if the response to a creation is lost, E2B may have created the sandbox nevertheless. */
  async sweep(): Promise<void> {
    const failed = new Set<string>();
    for (const { apiKey, sandbox } of this.#creations) await sandbox.catch(() => failed.add(apiKey));
    for (const apiKey of failed) {
      const account = { ...this.#urls, apiKey, retries: 0 };
      const left = Sandbox.list({ ...account, query: { metadata: this.#metadata } });
      while (left.hasNext) {
        for (const { sandboxId } of await left.nextItems()) await Sandbox.kill(sandboxId, account);
      }
    }
  }

  /** Takes no signal: an aborted creation may leave a sandbox behind. */
  #create(apiKey: string): Promise<Sandbox> {
    const sandbox = Sandbox.create({ ...this.#urls, apiKey, retries: 0, metadata: this.#metadata });
    this.#creations.push({ apiKey, sandbox });
    return sandbox;
  }
}
