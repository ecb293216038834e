import { type IntervalHistogram, monitorEventLoopDelay } from 'node:perf_hooks';
import { getHeapStatistics } from 'node:v8';
import { memoryOfProcess } from '../config.js';
import { Extreme } from './extreme.js';
import type { History, Span } from './history.js';

/** What the process and its machine were like in a window. */
export interface MachineFigures {
  /** Milliseconds that a callback waits for the event loop on average, if it falls due at a random moment. */
  readonly loopDelayMs: number;
  /** The longest that the event loop stood still. */
  readonly longestStallMs: number;
  /** The share of one core that the process used; more than 1 with worker threads. */
  readonly cpuShare: number;
  /** The least of the JavaScript heap that was in use, garbage being collected meanwhile, in bytes. */
  readonly heapBytes: number;
  readonly heapLimitBytes: number;
  /** The memory of the whole process, in bytes. */
  readonly residentBytes: number;
  readonly memoryBytes: number;
}

/** Reads the process. A test gives figures of its own. */
export interface Machine {
  /** Adds what happened since the last time to the sums. */
  read(history: History, nowMs: number): void;
  figures(span: Span): MachineFigures;
  stop(): void;
}

/** Coarse, since each tick wakes the process; a stall shows as well. */
const RESOLUTION_MS = 20;
const NS_PER_MS = 1e6;
/** V8 counts the room for new objects to its limit, three semi-spaces. What stays does not stay there. */
const YOUNG_BYTES = 3 * (Number.parseInt(process.versions.v8, 10) < 13 ? 16 : 64) * 1024 ** 2;

/**
 * The process that this runs in.
 *
 * The event loop's delay is weighed by time: a stall of d milliseconds is met by whatever falls due in it, and costs
 * that d / 2 on average. So the mean wait is the sum of d² over twice the sum of d, and one stall of a second in a
 * minute counts as much as it is felt, where a percentile of the samples would not show it at all.
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
      // A loop that is free is looked at every RESOLUTION_MS, and seems to keep a random moment waiting for half of it.
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
