import { expect, it } from 'vitest';
import { LearnedWindows } from '../../../src/gate/keys/learned-windows.js';

it('a report that comes late counts as known what has left the window since its call began', () => {
  const learned = new LearnedWindows();
  const report = { name: 'requests', unit: 'calls', limit: 10, resetMs: 60_000 } as const;
  learned.learn([{ ...report, remaining: 10 }], [], 0);
  const window = learned.all[0]!;
  const entries = Array.from({ length: 10 }, () => window.reserve(1));
  for (const entry of entries) window.begin(entry, 0);
  learned.learn([{ ...report, remaining: 0 }], [entries[9]!], 61_000);
  expect(window.used(61_000)).toBe(0);
});
