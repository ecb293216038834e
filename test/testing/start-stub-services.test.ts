import { type StubServices, startStubServices } from 'pipeline-pool/testing';
import { describe, expect, it } from 'vitest';

describe('startStubServices', () => {
  it('starts all four, and stops them at the end of the block', async () => {
    let services: StubServices;
    {
      await using started = await startStubServices();
      services = started;
      const { llm, serper, jina, e2b } = services;
      const urls = [llm.url, serper.url, jina.url, e2b.url];
      expect(new Set(urls).size).toBe(4);
      const statuses = await Promise.all([
        fetch(`${llm.baseUrl}/models`),
        fetch(`${serper.url}/search`, { method: 'POST', headers: { 'X-API-KEY': 'k' }, body: '{"q":"x"}' }),
        fetch(`${jina.url}/https://example.com`),
        fetch(`${e2b.url}/sandboxes`, { headers: { 'X-API-KEY': e2b.connection.apiKey } }),
      ]);
      expect(statuses.map(({ status }) => status)).toEqual([200, 200, 200, 200]);
      services.resetStats();
      expect([llm, serper, jina, e2b].map((service) => service.stats().calls)).toEqual([0, 0, 0, 0]);
    }
    for (const service of [services.llm, services.serper, services.jina, services.e2b]) {
      expect(() => service.url).toThrow('is stopped');
    }
  });

  it('passes its time scale to services without their own', async () => {
    await using services = await startStubServices({ timeScale: 0.5, jina: { timeScale: 0.25 } });
    const { llm, serper, jina, e2b } = services;
    expect([llm, serper, jina, e2b].map(({ timeScale }) => timeScale)).toEqual([0.5, 0.5, 0.25, 0.5]);
  });

  it('rejects invalid options of any service before any is started', async () => {
    await expect(startStubServices({ lm: {} } as never)).rejects.toThrow('lm');
    await expect(startStubServices({ serper: { credits: -1 } })).rejects.toThrow('credits');
  });
});
