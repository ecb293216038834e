import { CONFIG_VARIABLES } from '../../manager/config.js';
import { type Finding, percent, rounded, shownMs } from './finding.js';
import type { Report } from './recorder.js';

/** Above this average delay of a callback, everything takes longer and every timer is late. */
const LOOP_DELAY_MS = 25;
/** A process that is late while it uses less of a core is short of CPU. */
const BUSY = 0.7;
const FULL = 0.85;

/** What is wrong with the process itself. Every other measurement depends on it. */
export function machineFindings(report: Report): Finding[] {
  return [memoryShort(report), loopBlocked(report)].filter((finding) => finding !== undefined);
}

function loopBlocked({ machine }: Report): Finding | undefined {
  const { loopDelayMs, longestStallMs, cpuShare } = machine;
  if (loopDelayMs < LOOP_DELAY_MS) return undefined;
  return {
    code: 'event-loop-blocked',
    source: 'process',
    share: Math.min(1, loopDelayMs / 1000),
    message: `The event loop delays callbacks by ${shownMs(loopDelayMs)} on average, and was blocked for up to ${shownMs(longestStallMs)}`,
    evidence: {
      loopDelayMs: Math.round(loopDelayMs),
      longestStallMs: Math.round(longestStallMs),
      cpuShare: rounded(cpuShare, 2),
    },
    remedy:
      cpuShare < BUSY
        ? `The process used only ${percent(cpuShare)} of a core and was late nevertheless: it waits for the CPU. Give its container a larger CPU quota, or run fewer other processes on the machine. If it was waiting for the disk, look for \`…Sync\` calls.`
        : 'Find the long-running JavaScript (`node --cpu-prof`): parsing large pages or JSON, tokenizing, regular expressions, `…Sync` calls. Move it to a worker thread, or split it into smaller steps; or run one process per core, each with a share of the instances.',
  };
}

function memoryShort({ machine, pool }: Report): Finding | undefined {
  const { heapBytes, heapLimitBytes, residentBytes, memoryBytes } = machine;
  const heap = heapBytes / heapLimitBytes;
  const resident = residentBytes / memoryBytes;
  if (heap < FULL && resident < FULL) return undefined;
  const ofHeap = heap >= resident;
  const fewer = `fewer instances (\`${CONFIG_VARIABLES.poolSize}\`; ${pool.live} are alive)`;
  return {
    code: 'memory-short',
    source: 'process',
    share: Math.min(1, Math.max(heap, resident)),
    message: ofHeap
      ? `${percent(heap)} of the JavaScript heap is in use (${inMb(heapBytes)} of ${inMb(heapLimitBytes)} MB): garbage collection takes more and more time, and then the process crashes`
      : `The process uses ${percent(resident)} of its memory (${inMb(residentBytes)} of ${inMb(memoryBytes)} MB), and is killed at the limit`,
    evidence: {
      heapMb: inMb(heapBytes),
      heapLimitMb: inMb(heapLimitBytes),
      residentMb: inMb(residentBytes),
      memoryMb: inMb(memoryBytes),
      instances: pool.live,
    },
    remedy: ofHeap
      ? `Raise the heap (\`node --max-old-space-size=<MB>\`) if the machine has more memory, or keep ${fewer}. If it grows with every task, \`reset\` leaks: \`maxUses\` replaces instances until the leak is found.`
      : `Keep ${fewer}, or give the container more memory. If it grows with every task, \`maxUses\` replaces instances until the leak is found.`,
  };
}

const inMb = (bytes: number): number => Math.round(bytes / 1024 ** 2);
