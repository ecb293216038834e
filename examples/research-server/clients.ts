import { Sandbox } from '@e2b/code-interpreter';
import { type Attempt, connectClients, type ServiceSettings } from '../host-clients.js';

/** The clients of a host, with a model that streams and a sandbox for each request. */
export function connectResearchClients(settings: ServiceSettings) {
  const { model, e2b } = settings;
  const { openai, ...clients } = connectClients(settings);
  return {
    ...clients,

    /** The answer of the model, chunk by chunk. */
    async say(prompt: string, { signal }: { readonly signal: AbortSignal }) {
      const messages = [{ role: 'user' as const, content: prompt }];
      return openai.chat.completions.create({ model, messages, stream: true }, { signal });
    },

    /** An aborted creation may leave an orphaned sandbox behind: it is finished, and the sandbox killed. */
    async startSandbox(taskId: string, { key, signal }: Attempt): Promise<Sandbox> {
      const { keys: _, ...urls } = e2b;
      const sandbox = await Sandbox.create({ ...urls, apiKey: key, retries: 0, metadata: { taskId } });
      if (!signal.aborted) return sandbox;
      await sandbox.kill();
      throw signal.reason;
    },
  };
}

export type Clients = ReturnType<typeof connectResearchClients>;
