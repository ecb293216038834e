import { readFileSync } from 'node:fs';
import { expect, it } from 'vitest';
import { draw, record } from '../support/fairness-picture.js';

const page = readFileSync('docs/fairness.md', 'utf8').replace(/\s+/g, ' ');

it('The fairness page states the mean waits that its picture shows, and each way of sharing does what it says', async () => {
  const [none, requests, weight, time] = [
    await record('no tenant'),
    await record('requests'),
    await record('weight'),
    await record('time'),
  ];
  expect(page).toContain(`queued, ${none.meanWaitMs.toFixed(1)} ms on average`);
  expect(page).toContain(
    `is ${requests.meanWaitMs.toFixed(1)} ms and grows, with ${requests.queuedAtEnd} calls queued`,
  );
  expect(page).toContain(`They wait ${time.meanWaitMs.toFixed(1)} ms on average`);
  expect(weight.meanWaitMs).toBe(requests.meanWaitMs);
  expect(time.meanWaitMs).toBeLessThan(requests.meanWaitMs / 4);
});

it('The picture of the fairness page is the one that the present code draws', async () => {
  expect(readFileSync('docs/images/fairness.svg', 'utf8')).toBe(await draw());
});
