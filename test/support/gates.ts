import type { ToolGate, ToolGateAttempt, ToolGateOptions } from '../../src/tools/define-tools.js';

/** An error as the usual clients throw it. */
export const httpError = (status: number, headers: Record<string, string> = {}, message = `HTTP ${status}`) =>
  Object.assign(new Error(message), { status, headers: new Headers(headers) });

/** The smallest gate: records its options, and makes each attempt with the next of its keys. */
export class KeyedGate implements ToolGate {
  readonly calls: ToolGateOptions[] = [];
  readonly reportedUsage: number[] = [];
  readonly #keys: readonly string[];
  readonly #attempts: number;

  constructor(keys: readonly string[], attempts = 1) {
    this.#keys = keys;
    this.#attempts = attempts;
  }

  async run<R>(
    work: (attempt: ToolGateAttempt) => R | PromiseLike<R>,
    options: ToolGateOptions = {},
  ): Promise<R> {
    this.calls.push(options);
    for (let attempt = 1; ; attempt++) {
      try {
        return await work({
          signal: options.signal ?? new AbortController().signal,
          key: this.#keys[(attempt - 1) % this.#keys.length] ?? '',
          attempt,
          reportUsage: (actual) => this.reportedUsage.push(actual),
        });
      } catch (error) {
        if (attempt >= this.#attempts) throw error;
      }
    }
  }
}
