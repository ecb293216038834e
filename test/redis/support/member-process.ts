/**
 * One member of a fleet, in a process of its own: takes permits, works under them in steps, and writes down for the
 * referee when it entered, stepped and left. Anything unhandled ends it with code 99.
 */
import { openSync, writeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { RedisLimits } from 'pipeline-pool/redis';
import { CLIENTS } from './clients.js';
import type { MemberConfig } from './fleet.js';

const config = JSON.parse(process.env.MEMBER ?? '') as MemberConfig;
const file = openSync(config.log, 'a');
const write = (kind: string, id: string | number, at = process.hrtime.bigint()): void => {
  writeSync(file, `${at} ${kind} ${id}\n`);
};
const fatal = (error: unknown): void => {
  write('fatal', JSON.stringify(String((error as Error)?.stack ?? error)));
  process.exit(99);
};
process.on('unhandledRejection', fatal);
process.on('uncaughtException', fatal);

const STEP_MS = 10;
let finished = false;
let nextHold = 0;

/** Notes when each renewal of the lease was sent that Redis has confirmed. */
function recordRenewals<T extends object>(client: T): T {
  const method = 'evalSha' in client ? 'evalSha' : 'evalsha';
  return new Proxy(client, {
    get(target, name) {
      const value = Reflect.get(target, name, target);
      if (typeof value !== 'function') return value;
      if (name !== method && name !== 'eval') return value.bind(target);
      return async (...args: unknown[]) => {
        const sentAt = process.hrtime.bigint();
        const reply = await value.apply(target, args);
        const header =
          method === 'evalSha'
            ? (args[1] as { arguments: string[] }).arguments
            : (args[2] as string[]).slice(Number(args[1]));
        if (header[6] === '1' && Number((reply as unknown[])[0]) === 0) write('renewed', 0, sentAt);
        return reply;
      };
    },
  });
}

const owned = await CLIENTS[config.library](config.port, config.client);
const limits = new RedisLimits({
  client: recordRenewals(owned.client),
  leaseMs: config.leaseMs,
  whenUnavailable: config.whenUnavailable,
});
const limiter = limits.limiter({ name: config.name, maxConcurrent: config.maxConcurrent });
for (const event of ['fleet:unavailable', 'fleet:restored', 'permit:lost'] as const) {
  limits.hooks.on(event, () => write('event', event));
}

async function work(): Promise<void> {
  const permit = await limiter.acquire();
  const id = nextHold++;
  let isInside = true;
  write('enter', id);
  const leave = (): void => {
    if (isInside) write('exit', id);
    isInside = false;
  };
  permit.signal.addEventListener('abort', leave);
  const holdMs = config.holdMs * (0.5 + Math.random());
  for (let left = holdMs; left > 0; left -= STEP_MS) {
    await sleep(Math.min(left, STEP_MS));
    // As a gate does: its timer may be due before that of the lease when a stopped process goes on.
    if (permit.signal.aborted) break;
    write('step', id);
  }
  leave();
  permit.release();
}

async function loop(): Promise<void> {
  while (!finished) {
    try {
      await work();
    } catch (error) {
      write('rejected', (error as { code?: string }).code ?? String(error));
      await sleep(20);
    }
  }
}

const loops = Array.from({ length: config.loops }, loop);
process.on('message', async (message: { type: string; ms?: number }) => {
  if (message.type === 'block') {
    const end = performance.now() + (message.ms ?? 0);
    while (performance.now() < end);
  } else if (message.type === 'finish') {
    finished = true;
    await Promise.race([Promise.all(loops), sleep(config.leaseMs * 2)]);
    await limits.close();
    await owned[Symbol.asyncDispose]();
    process.disconnect();
    process.exit(0);
  }
});
// Without its test, it would run for ever.
process.on('disconnect', () => process.exit(0));
process.send?.('ready');
