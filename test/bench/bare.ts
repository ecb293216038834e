/** What everything is measured against: a call that is awaited, with nothing around it. */

/** CPU time of the whole process, all its threads: other processes do not count, the collector does. */
export const cpuNs = (): number => {
  const { user, system } = process.cpuUsage();
  return (user + system) * 1000;
};

const OPS = 100_000;
const WARM_UPS = 6;
const SAMPLES = 9;

/** Does nothing, as what is limited and pooled does in a benchmark. */
export const nothing = async (): Promise<void> => {};

async function sampleNs(): Promise<number> {
  const begin = cpuNs();
  for (let i = 0; i < OPS; i++) await nothing();
  return (cpuNs() - begin) / OPS;
}

async function medianNs(): Promise<number> {
  const samples: number[] = [];
  for (let i = -WARM_UPS; i < SAMPLES; i++) {
    const ns = await sampleNs();
    if (i >= 0) samples.push(ns);
  }
  return samples.sort((a, b) => a - b)[SAMPLES >> 1] as number;
}

let measured: Promise<number> | undefined;

/**
 * Nanoseconds of CPU time that it takes in this process. Measured once, before anything else: between other work it would
 * pay for the collection of what that has left behind, three times its own cost behind some libraries.
 */
export const bareNs = (): Promise<number> => {
  measured ??= medianNs();
  return measured;
};
