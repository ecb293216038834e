import type { ToolGate, ToolGateAttempt, ToolGateOptions } from '../../src/tools/tool-gate.js';

/** A promise to settle by hand. */
export interface Deferred<T> {
  readonly promise: Promise<T>;
  resolve(value: T): void;
  reject(error: unknown): void;
}

export function deferred<T = void>(): Deferred<T> {
  let resolve!: (value: T) => void;
  let reject!: (error: unknown) => void;
  const promise = new Promise<T>((yes, no) => {
    resolve = yes;
    reject = no;
  });
  promise.catch(() => {});
  return { promise, resolve, reject };
}

/** Lets everything run that is ready to. */
export async function settled(): Promise<void> {
  for (let i = 0; i < 30; i++) await undefined;
}

/** The smallest gate: remembers what it was told, and makes each attempt with the next of its keys. */
export class KeyedGate implements ToolGate {
  readonly told: ToolGateOptions[] = [];
  readonly settledWeights: number[] = [];
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
    this.told.push(options);
    for (let attempt = 1; ; attempt++) {
      try {
        return await work({
          signal: options.signal ?? new AbortController().signal,
          key: this.#keys[(attempt - 1) % this.#keys.length] ?? '',
          attempt,
          settle: (actual) => this.settledWeights.push(actual),
        });
      } catch (error) {
        if (attempt >= this.#attempts) throw error;
      }
    }
  }
}
