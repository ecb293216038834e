import * as main from 'pipeline-pool';
import * as opentelemetry from 'pipeline-pool/opentelemetry';
import * as prometheus from 'pipeline-pool/prometheus';
import * as testing from 'pipeline-pool/testing';
import { expect, it } from 'vitest';

it('exports these names and no others: a change here is a change for every user', async () => {
  const entries = { main, opentelemetry, prometheus, testing };
  const names = Object.entries(entries).map(
    ([entry, module]) =>
      `${entry}\n${Object.keys(module)
        .sort()
        .map((name) => `  ${name}\n`)
        .join('')}`,
  );
  await expect(names.join('\n')).toMatchFileSnapshot('exports.txt');
});
