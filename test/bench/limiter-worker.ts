/** The process that measures: one limiter, one workload. Prints its samples as one line of JSON. */
import { CONTENDERS } from './contenders.js';
import { type Effort, GROWTH, ROWS, takeSamples } from './limiter-workloads.js';

const [contenderName, workloadName, effort] = process.argv.slice(2);
const contender = CONTENDERS.find(({ name }) => name === contenderName);
const workload = [...ROWS, ...GROWTH].find(({ name }) => name === workloadName);
if (contender === undefined || workload === undefined || effort === undefined) {
  throw new Error(`Nothing to measure as ${process.argv.slice(2).join(' ')}`);
}
const samples = await takeSamples(contender, workload, JSON.parse(effort) as Effort);
process.stdout.write(`${JSON.stringify(samples)}\n`, () => process.exit(0));
