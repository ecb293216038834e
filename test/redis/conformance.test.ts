import { setTimeout as sleep } from 'node:timers/promises';
import { RedisLimits } from 'pipeline-pool/redis';
import { limiterConformance } from 'pipeline-pool/testing';
import { afterAll, beforeAll, describe, it } from 'vitest';
import { CLIENTS, type TestClient } from './support/clients.js';
import { hasRedis, RedisServer } from './support/redis-server.js';

describe.skipIf(!hasRedis)('a fleet limiter conforms to the Limiter interface: it', () => {
  let server: RedisServer;
  let owned: TestClient;
  let limits: RedisLimits;
  let names = 0;

  beforeAll(async () => {
    server = await RedisServer.start();
    owned = await CLIENTS['node-redis 6'](server.port);
    limits = new RedisLimits({ client: owned.client, leaseMs: 1_000 });
    await sleep(2_100);
  });
  afterAll(async () => {
    await limits.close();
    await owned[Symbol.asyncDispose]();
    await server[Symbol.asyncDispose]();
  });

  const cases = limiterConformance((options) => limits.limiter({ name: `limit-${names++}`, ...options }));
  for (const { name, run } of cases) it(name, run);
});
