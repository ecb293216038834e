import { afterAll, beforeAll } from 'vitest';
import { endOfTurn } from './promises.js';
import { VirtualTime } from './virtual-time.js';

/** Virtual time for the tests of this file or block. */
export function inVirtualTime(): VirtualTime {
  const time = new VirtualTime();
  beforeAll(async () => {
    time.install();
    await endOfTurn();
  });
  afterAll(async () => {
    time.restore();
    await endOfTurn();
  });
  return time;
}
