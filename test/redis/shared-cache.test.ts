import KeyvRedis from '@keyv/redis';
import Keyv from 'keyv';
import { ServiceGate } from 'pipeline-pool';
import { describe, expect, it } from 'vitest';
import { until } from '../support/promises.js';
import { hasRedis, RedisServer } from './support/redis-server.js';

describe.skipIf(!hasRedis)('a cache over a Keyv on Redis', () => {
  it('serves what another process has fetched', async () => {
    await using server = await RedisServer.start();
    const stores = [1, 2].map(() => new Keyv(new KeyvRedis(server.url), { useKeyPrefix: false }));
    const [one, two] = stores.map(
      (store) => new ServiceGate({ name: 'reader', cache: { max: 10, ttlMs: 60_000, store } }),
    ) as [ServiceGate, ServiceGate];
    expect(await one.run(() => ({ text: 'tides' }), { cacheKey: 'page' })).toEqual({ text: 'tides' });
    await until(async () => (await server.keys()).length === 1);
    const never = () => Promise.reject(new Error('fetched twice'));
    expect(await two.run(never, { cacheKey: 'page' })).toEqual({ text: 'tides' });
    for (const store of stores) await store.disconnect();
  });
});
