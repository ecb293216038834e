/**
 * What a tenant of short calls waits beside one of long calls, with each way of sharing.
 *
 *     tsx test/bench/fairness.ts
 *
 * In virtual time, 12 s each: the figures do not depend on the machine.
 */
import { play, type Sharing } from '../support/two-tenants.js';
import { VirtualTime } from '../support/virtual-time.js';
import { markdownTable } from './harness.js';

const SHARINGS: readonly Sharing[] = ['no tenant', 'requests', 'weight', 'time', 'priority'];

const time = new VirtualTime();
time.install();
const rows: string[][] = [];
for (const load of [0.1, 0.3]) {
  for (const sharing of SHARINGS) {
    const playing = play({ sharing, load, heavyMs: (random) => 30 + 60 * random, durationMs: 12_000 });
    await time.pass(13_000);
    const { meanMs, p95Ms, queuedAtEnd } = await playing;
    rows.push([`${100 * load} %`, sharing, meanMs.toFixed(1), p95Ms.toFixed(1), String(queuedAtEnd)]);
  }
}
time.restore();
console.log(
  markdownTable(['offered load', 'sharing', 'mean wait, ms', 'p95, ms', 'queued at the end'], rows),
);
