/**
 * A member of a fleet in a process of its own: calls a gate as fast as it lets it, and writes `key nanoseconds` for each
 * start, on the monotonic clock that all processes of a machine share: what the gate read of its clock last before the first
 * line of the call. (That line itself may run later: on a busy machine, or when the process is stopped in between.)
 * Arguments: port, options of the gate as JSON, calls at the same time.
 */
import { writeSync } from 'node:fs';
import { ServiceGate } from 'pipeline-pool';
import { RedisLimits } from 'pipeline-pool/redis';
import { createClient } from 'redis';

const now = performance.now.bind(performance);
let readMs = 0;
performance.now = () => {
  readMs = now();
  return readMs;
};
/** The reading of the shared clock at 0 of this process's: the smallest, since this one may be held up between the two. */
const originNs = Array.from({ length: 100 }, () => {
  const ms = now();
  return Number(process.hrtime.bigint()) - ms * 1e6;
}).reduce((a, b) => Math.min(a, b));

const [port, options = '{}', callers] = process.argv.slice(2);
const client = createClient({ url: `redis://127.0.0.1:${port}` });
client.on('error', () => {});
await client.connect();
const limits = new RedisLimits({ client, leaseMs: 600 });
const gate = new ServiceGate({ ...JSON.parse(options), limits });

await Promise.all(
  Array.from({ length: Number(callers) }, async () => {
    for (;;) await gate.run(({ key }) => writeSync(1, `${key} ${originNs + readMs * 1e6}\n`)).catch(() => {});
  }),
);
