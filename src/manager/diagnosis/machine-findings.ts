import { CONFIG_VARIABLES } from '../config.js';
import { type Finding, percent, rounded, shownMs } from './finding.js';
import type { Report } from './recorder.js';

/** A callback that waits so long on average: everything takes longer, and every timer is late. */
const LOOP_DELAY_MS = 25;
/** A process that uses less of a core, and is late all the same, is not given the core. */
const BUSY = 0.7;
const FULL = 0.85;

/** What is wrong with the process itself; everything else would be measured through it. */
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
    message: `The event loop keeps callbacks waiting for ${shownMs(loopDelayMs)} on average, and stood still for up to ${shownMs(longestStallMs)}`,
    evidence: {
      loopDelayMs: Math.round(loopDelayMs),
      longestStallMs: Math.round(longestStallMs),
      cpuShare: rounded(cpuShare, 2),
    },
    remedy:
      cpuShare < BUSY
        ? `The process used only ${percent(cpuShare)} of a core and was late all the same: it waits for the CPU. Give its container a larger CPU quota, or the machine fewer other things to do. If it was waiting for the disk, look for \`…Sync\` calls.`
        : 'Find the JavaScript that runs long (`node --cpu-prof`): parsing large pages or JSON, tokenising, regular expressions, `…Sync` calls. Move it to a worker thread, or cut it into pieces; or run a process for each core, with a share of the instances each.',
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
      ? `${percent(heap)} of the JavaScript heap is in use (${inMb(heapBytes)} of ${inMb(heapLimitBytes)} MB): the collector takes more and more time, and then the process ends`
      : `The process takes ${percent(resident)} of the memory it may use (${inMb(residentBytes)} of ${inMb(memoryBytes)} MB), and will be killed at the limit`,
    evidence: {
      heapMb: inMb(heapBytes),
      heapLimitMb: inMb(heapLimitBytes),
      residentMb: inMb(residentBytes),
      memoryMb: inMb(memoryBytes),
      instances: pool.live,
    },
    remedy: ofHeap
      ? `Raise the heap (\`node --max-old-space-size=<MB>\`) if the machine has more memory, or keep ${fewer}. If it grows with every task, \`reset\` leaves something behind: \`maxUses\` replaces instances until that is found.`
      : `Keep ${fewer}, or give the container more memory. If it grows with every task, \`maxUses\` replaces instances until the leak is found.`,
  };
}

const inMb = (bytes: number): number => Math.round(bytes / 1024 ** 2);
