import type { ChildProcess } from 'node:child_process';
import { subscribe } from 'node:diagnostics_channel';
import type { Reporter, TestModule, Vitest } from 'vitest/node';
import { isSoak } from './soak.js';

/** For `execArgv`: a worker that is interrupted prints the stack of what it runs, in an endless loop as well. */
export const TRACE_INTERRUPTS = '--trace-sigint';

/** Vitest stops waiting for a worker to start after this long. */
const START_MS = 90_000;

/**
 * Ends the process of a test file that runs longer than `limitMs`, and so fails the run. Vitest's own timeouts are
 * timers in that process, which an endless loop never gets to. Prints the file, its unfinished tests, and the stack.
 */
export class Watchdog implements Reporter {
  readonly #limitMs: number;
  readonly #files = new Map<string, { file: TestModule; startedAt: number }>();
  #print: (text: string) => void = () => {};

  constructor(limitMs = (isSoak ? 30 : 8) * 60_000) {
    this.#limitMs = limitMs;
  }

  onInit(vitest: Vitest): void {
    this.#print = (text) => vitest.logger.error(text);
    subscribe('child_process', (message) => this.#watch((message as { process: ChildProcess }).process));
  }

  onTestModuleQueued(file: TestModule): void {
    this.#files.set(file.id, { file, startedAt: performance.now() });
  }

  onTestModuleCollected(file: TestModule): void {
    // Another object for the same file, which knows its tests.
    this.#files.set(file.id, { startedAt: performance.now(), ...this.#files.get(file.id), file });
  }

  onTestModuleEnd(file: TestModule): void {
    this.#files.delete(file.id);
  }

  #watch(worker: ChildProcess): void {
    const spawnedAt = performance.now();
    let timer = setTimeout(() => {
      if (!worker.spawnargs.includes(TRACE_INTERRUPTS)) return;
      this.#print(this.#report(spawnedAt));
      worker.kill('SIGINT');
      timer = setTimeout(() => worker.kill('SIGKILL'), 10_000);
    }, this.#limitMs).unref();
    worker.once('exit', () => clearTimeout(timer));
  }

  #report(spawnedAt: number): string {
    // Vitest does not say which process runs which file.
    const files = [...this.#files.values()].filter(
      ({ startedAt }) => startedAt >= spawnedAt && startedAt <= spawnedAt + START_MS,
    );
    const lines = files.flatMap(({ file }) => {
      const tests = [...file.children.allTests()];
      const unfinished = tests.filter((test) => test.result().state === 'pending');
      return [
        `  ${file.relativeModuleId} (${unfinished.length} of ${tests.length} tests unfinished)`,
        ...unfinished.slice(0, 5).map((test) => `    ${test.fullName}`),
      ];
    });
    return [
      `A test file did not end within ${Math.round(this.#limitMs / 1_000)} seconds, and is stopped:`,
      ...(lines.length > 0 ? lines : ['  (its tests have ended)']),
      'What it ran at that moment, if it did not wait:',
    ].join('\n');
  }
}
