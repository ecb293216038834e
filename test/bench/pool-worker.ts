/** The process that measures: one pool, one workload. Prints its samples as one line of JSON. */
import { POOL_CONTENDERS } from './pool-contenders.js';
import { POOL_GROWTH, POOL_ROWS, takePoolSamples } from './pool-workloads.js';

const [contenderName, workloadName] = process.argv.slice(2);
const contender = POOL_CONTENDERS.find(({ name }) => name === contenderName);
const workload = [...POOL_ROWS, ...POOL_GROWTH].find(({ name }) => name === workloadName);
if (contender === undefined || workload === undefined) {
  throw new Error(`Nothing to measure as ${process.argv.slice(2).join(' ')}`);
}
const samples = await takePoolSamples(contender, workload);
process.stdout.write(`${JSON.stringify(samples)}\n`, () => process.exit(0));
