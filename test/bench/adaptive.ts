/**
 * The adaptive limit in front of a simulated LLM server with the step times of a real one (`npm run bench:adaptive`):
 * virtual time, so the load of the machine does not matter. Median of seven seeds, 1 to 7 or those from `--from=N`.
 */
import {
  adaptive,
  between,
  fixed,
  type LlmScenario,
  median,
  medians,
  play,
  reached,
} from '../support/llm-load.js';

const isQuick = process.argv.includes('--quick');
const firstSeed = Number(process.argv.find((argument) => argument.startsWith('--from='))?.slice(7) ?? 1);
const SEEDS = Array.from({ length: isQuick ? 3 : 7 }, (_, i) => firstSeed + i);
const LIMITS = isQuick
  ? [32, 48, 64, 80, 96, 104]
  : [4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 48, 56, 64, 72, 80, 88, 96, 104, 128];

/** Tokens per second, and the time to the first token, as measured on an H200. */
const REAL: Readonly<Record<number, readonly [tokens: number, firstMs: number]>> = {
  4: [905, 10],
  8: [1_548, 11],
  16: [2_296, 17],
  32: [3_342, 21],
  64: [4_455, 26],
  96: [4_862, 41],
  128: [4_794, 390],
  256: [4_453, 326],
  400: [4_609, 2_757],
};

const middle = (all: readonly number[]): number => median([...all].sort((a, b) => a - b));
const percent = (share: number): string => `${(100 * share).toFixed(0)} %`;

type Make = Parameters<typeof play>[1];
function served(make: Make) {
  const all = SEEDS.map((seed) => between(play({ seed, phases: [[13, 0]] }, make), 4, 13));
  return {
    tokens: Math.round(middle(all.map(({ tokens }) => tokens)) / 9),
    firstMs: Math.round(middle(all.map(({ firstMs }) => median(firstMs)))),
    timeouts: middle(all.map(({ timeouts }) => timeouts)),
  };
}

console.log(
  '| limit | real tokens/s | real first token, ms | simulated tokens/s | simulated first token, ms | timeouts |',
);
console.log('|---|---:|---:|---:|---:|---:|');
const row = (name: string, real: readonly [number, number] | undefined, make: Make): void => {
  const { tokens, firstMs, timeouts } = served(make);
  console.log(
    `| ${name} | ${real?.[0] ?? '–'} | ${real?.[1] ?? '–'} | ${tokens} | ${firstMs} | ${timeouts} |`,
  );
};
for (const [limit, real] of Object.entries(REAL)) row(`fixed ${limit}`, real, fixed(Number(limit)));
row('adaptive, streams', undefined, adaptive());
row('adaptive, gauge every 500 ms', undefined, adaptive(500));

console.log(
  '\n| calls | tokens, settled | first token × the knee | timeouts (at the knee) | 4 s after a loss | 4.5 s after its return |',
);
console.log('|---|---:|---:|---:|---:|---:|');
const cases: readonly (readonly [string, Partial<LlmScenario>, number?])[] = [
  ['half of them streamed', {}],
  ['all streamed', { streamed: 1 }],
  ['one in ten streamed', { streamed: 0.1 }],
  ['none streamed, tokens known', { streamed: 0, usage: true }],
  ['half of them streamed, gauge every 500 ms', {}, 500],
  ['answers of 80 tokens', { meanTokens: 80 }],
  ['long prompts', { meanPrompt: 300 }],
];
for (const [name, scenario, gaugeMs] of cases) {
  const { found, first, timeouts, timeoutsAtKnee, lost, returned } = medians(
    SEEDS.map((seed) => reached({ seed, ...scenario }, adaptive(gaugeMs), LIMITS)),
  );
  console.log(
    `| ${name} | ${percent(found)} | ${first.toFixed(2)} | ${timeouts} (${timeoutsAtKnee}) | ${percent(lost)} | ${percent(returned)} |`,
  );
}
