import { vi } from 'vitest';
import type { ServiceGateOptions } from '../../src/gate/options.js';
import { ServiceGate } from '../../src/gate/service-gate.js';
import type { CallEnd } from '../../src/limiter/adaptive-limit.js';
import type { ToolGate, ToolGateAttempt, ToolGateOptions } from '../../src/tools/define-tools.js';
import { recorder } from './hooks.js';

/** An error as the usual clients throw it. */
export const httpError = (status: number, headers: Record<string, string> = {}, message = `HTTP ${status}`) =>
  Object.assign(new Error(message), { status, headers: new Headers(headers) });

/** Options of a gate that has its own limit. */
export type LimitedGateOptions = Partial<
  Omit<ServiceGateOptions, 'adaptive' | 'limiter' | 'maxConcurrent'>
> & { readonly maxConcurrent?: number };

/** A gate that retries at once, with one permit, and its events. */
export function hastyGate(options: LimitedGateOptions = {}) {
  const { hooks, of } = recorder();
  const retry = { baseMs: 1, maxMs: 1 };
  const cooldown = { baseMs: 1 };
  const gate = new ServiceGate({ name: 'llm', maxConcurrent: 1, hooks, retry, cooldown, ...options });
  return { gate, of, held: () => gate.stats().running };
}

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

/** What the limit of a gate learns from now on: when first items come and how calls end, in that order. */
export function learnedBy(gate: ServiceGate) {
  const learned: ('first item' | CallEnd)[] = [];
  const begin = gate.adaptive!.begin.bind(gate.adaptive!);
  vi.spyOn(gate.adaptive!, 'begin').mockImplementation((kind) => {
    const call = begin(kind);
    return {
      firstItem: () => {
        learned.push('first item');
        call.firstItem();
      },
      end: (end) => {
        learned.push(end);
        call.end(end);
      },
    };
  });
  return { learned, outcomes: () => learned.flatMap((one) => (one === 'first item' ? [] : [one.outcome])) };
}
