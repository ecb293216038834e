/**
 * A member of a fleet in a process of its own: calls a gate as fast as it lets it, and writes `key nanoseconds` for each
 * start, on the monotonic clock that all processes of a machine share. Arguments: port, options of the gate as JSON, calls at
 * the same time.
 */
import { writeSync } from 'node:fs';
import { ServiceGate } from 'pipeline-pool';
import { RedisLimits } from 'pipeline-pool/redis';
import { createClient } from 'redis';

const [port, options = '{}', callers] = process.argv.slice(2);
const client = createClient({ url: `redis://127.0.0.1:${port}` });
client.on('error', () => {});
await client.connect();
const limits = new RedisLimits({ client, leaseMs: 600 });
const gate = new ServiceGate({ ...JSON.parse(options), limits });

await Promise.all(
  Array.from({ length: Number(callers) }, async () => {
    for (;;) await gate.run(({ key }) => writeSync(1, `${key} ${process.hrtime.bigint()}\n`)).catch(() => {});
  }),
);
