/**
 * What everything is measured against: a call that is awaited, with nothing around it. For workers: it loads nothing, since a
 * large heap would make each collection dearer.
 */

/** CPU time of the whole process, all its threads: other processes do not count, the collector does. */
export const cpuNs = (): number => {
  const { user, system } = process.cpuUsage();
  return (user + system) * 1000;
};

/** Long enough for the clock, and short enough for a collection of its own garbage, or one at most. */
const SLICE = 40_000;
const SLICES = 5;
const WARM_UPS = 20;

/** Does nothing, as what is limited and pooled does in a benchmark. */
export const nothing = async (): Promise<void> => {};

async function sliceNs(): Promise<number> {
  const begin = cpuNs();
  for (let i = 0; i < SLICE; i++) await nothing();
  return (cpuNs() - begin) / SLICE;
}

/** Has it compiled, before anything else is. */
export async function warmUpBare(): Promise<void> {
  for (let i = 0; i < WARM_UPS; i++) await sliceNs();
}

/**
 * Nanoseconds of CPU time that it takes now: machines have faster and slower moments, which last for a second or more. The
 * median of slices, since the first ones pay for the collection of what other work has left behind, up to thirty times
 * their own cost behind some libraries.
 */
export async function bareNs(): Promise<number> {
  const slices: number[] = [];
  for (let i = 0; i < SLICES; i++) slices.push(await sliceNs());
  return slices.sort((a, b) => a - b)[SLICES >> 1] as number;
}

/** CPU time of some work, in nanoseconds for each of so many operations, beside the bare await before and after it. */
export async function besideBare(
  ops: number,
  work: () => Promise<void>,
): Promise<{ readonly ns: number; readonly bareNs: number }> {
  const before = await bareNs();
  await new Promise((resolve) => setImmediate(resolve));
  const begin = cpuNs();
  await work();
  const ns = (cpuNs() - begin) / ops;
  return { ns, bareNs: (before + (await bareNs())) / 2 };
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}
