import type { Sandbox } from './sandbox-fleet.js';
import { json, type StubReply } from './stub-call.js';

/** The body of a creation, and of what extends a sandbox, as far as the stub looks at it. */
export interface CreateBody {
  readonly templateID?: unknown;
  readonly metadata?: Readonly<Record<string, string>>;
  /** Seconds. */
  readonly timeout?: unknown;
  readonly autoPause?: unknown;
}

const DEFAULT_TIMEOUT_S = 300;
const MAX_TIMEOUT_S = 86_400;
const ENVD_VERSION = '0.5.0';
export const LINES_HEADERS = { 'content-type': 'application/json' };

/** The time asked for in milliseconds; `undefined` if it makes no sense. */
export function timeoutOf(body: CreateBody | undefined): number | undefined {
  const { timeout = DEFAULT_TIMEOUT_S } = body ?? {};
  const isSensible =
    typeof timeout === 'number' && Number.isInteger(timeout) && timeout >= 0 && timeout <= MAX_TIMEOUT_S;
  return isSensible ? timeout * 1000 : undefined;
}

export async function* linesOf(messages: readonly unknown[]): AsyncGenerator<string> {
  for (const message of messages) yield `${JSON.stringify(message)}\n`;
}

/** The answer of E2B's proxy for a sandbox that is not there, or is paused. */
export const notRunning = (sandboxId: string): StubReply =>
  json(502, { sandboxId, message: 'The sandbox was not found', code: 502 });

export const handleOf = ({ sandboxId, templateId }: Sandbox) => ({
  templateID: templateId,
  sandboxID: sandboxId,
  clientID: 'stub',
  envdVersion: ENVD_VERSION,
});

export const infoOf = (sandbox: Sandbox) => ({
  ...handleOf(sandbox),
  state: sandbox.state,
  startedAt: sandbox.startedAt.toISOString(),
  endAt: sandbox.endAt.toISOString(),
  cpuCount: 2,
  memoryMB: 512,
  diskSizeMB: 1024,
  metadata: sandbox.metadata,
});
