import { type IntervalHistogram, monitorEventLoopDelay } from 'node:perf_hooks';
import { getHeapStatistics } from 'node:v8';
import { memoryOfProcess } from '../../manager/config.js';
import { Extreme, type History, type Span } from './history.js';

/** The process and its machine in a window. */
export interface MachineFigures {
  /** Average delay, in milliseconds, of a callback that becomes due at a random moment. */
  readonly loopDelayMs: number;
  /** The longest time that the event loop was blocked, in milliseconds. */
  readonly longestStallMs: number;
  /** CPU time of the process divided by wall time; more than 1 with worker threads. */
  readonly cpuShare: number;
  /** The lowest heap use seen, in bytes: what survives garbage collection. */
  readonly heapBytes: number;
  readonly heapLimitBytes: number;
  /** Resident memory of the process, in bytes. */
  readonly residentBytes: number;
  readonly memoryBytes: number;
}

/** Reads the process. Tests replace it. */
export interface Machine {
  /** Adds what happened since the last read to the sums. */
  read(history: History, nowMs: number): void;
  figures(span: Span): MachineFigures;
  stop(): void;
}

/** Coarse, because each tick wakes the process; a long block shows nevertheless. */
const RESOLUTION_MS = 20;
const NS_PER_MS = 1e6;
/** V8 counts the young generation (three semi-spaces) in its heap limit; long-lived objects do not live there. */
const YOUNG_BYTES = 3 * (Number.parseInt(process.versions.v8, 10) < 13 ? 16 : 64) * 1024 ** 2;

/**
 * This process.
 *
 * The event loop's delay is weighted by time: a callback that becomes due during a block of d milliseconds waits d / 2 on
 * average. So the mean wait is the sum of d² divided by twice the sum of d. A percentile of the samples would hide a block
 * of one second per minute.
 */
export class ProcessMachine implements Machine {
  readonly #loop: IntervalHistogram = monitorEventLoopDelay({ resolution: RESOLUTION_MS });
  readonly #longestStall: Extreme;
  readonly #leastHeap: Extreme;
  #cpu = process.cpuUsage();

  constructor(windowMs: number, sliceMs: number) {
    this.#longestStall = new Extreme(Math.max, windowMs, sliceMs);
    this.#leastHeap = new Extreme(Math.min, windowMs, sliceMs);
    this.#loop.enable();
  }

  read(history: History, nowMs: number): void {
    const { count, mean, stddev, max } = this.#loop;
    if (count > 0) {
      const meanMs = mean / NS_PER_MS;
      const stddevMs = stddev / NS_PER_MS;
      history.add('loop.ms', count * meanMs);
      history.add('loop.ms²', count * (meanMs ** 2 + stddevMs ** 2));
      this.#longestStall.note(Math.max(0, max / NS_PER_MS - RESOLUTION_MS), nowMs);
      this.#loop.reset();
    }
    const used = process.cpuUsage(this.#cpu);
    this.#cpu = process.cpuUsage();
    history.add('cpu.ms', (used.user + used.system) / 1000);
    this.#leastHeap.note(getHeapStatistics().used_heap_size, nowMs);
  }

  figures(span: Span): MachineFigures {
    const loopMs = span.sum('loop.ms');
    const { used_heap_size, heap_size_limit } = getHeapStatistics();
    const meanWaitMs = loopMs > 0 ? span.sum('loop.ms²') / (2 * loopMs) : 0;
    return {
      // An idle loop is sampled every RESOLUTION_MS, which looks like an average wait of half of that.
      loopDelayMs: Math.max(0, meanWaitMs - RESOLUTION_MS / 2),
      longestStallMs: this.#longestStall.value ?? 0,
      cpuShare: span.ms > 0 ? span.sum('cpu.ms') / span.ms : 0,
      heapBytes: this.#leastHeap.value ?? used_heap_size,
      heapLimitBytes: Math.max(heap_size_limit - YOUNG_BYTES, heap_size_limit / 2),
      residentBytes: process.memoryUsage.rss(),
      memoryBytes: memoryOfProcess(),
    };
  }

  stop(): void {
    this.#loop.disable();
  }
}
