/** A scale of time, from 0 to `endMs`. */
export interface Axis {
  /** Where a moment lies. */
  x(ms: number): number;
  /** Where it ends. */
  readonly right: number;
  readonly ticks: readonly { readonly ms: number; readonly x: number; readonly label: string }[];
}

const STEPS_S = [
  0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1_200, 1_800,
  3_600,
];

/** The scale with the finest round steps that leave each label `tickWidth`. */
export function axisOf(endMs: number, left: number, right: number, tickWidth: number): Axis {
  const x = (ms: number): number => left + (ms / endMs) * (right - left);
  const room = Math.max(1, Math.floor((right - left) / tickWidth));
  const hours = (steps: number) => steps * 3_600;
  const step =
    STEPS_S.find((seconds) => endMs / 1_000 / seconds <= room) ?? hours(Math.ceil(endMs / 3_600_000 / room));
  const decimals = step >= 1 ? 0 : Math.ceil(-Math.log10(step));
  const ticks = [];
  for (let i = 0; i * step * 1_000 <= endMs; i++) {
    const seconds = i * step;
    ticks.push({ ms: seconds * 1_000, x: x(seconds * 1_000), label: tickLabel(seconds, step, decimals) });
  }
  return { x, right, ticks };
}

const tickLabel = (seconds: number, step: number, decimals: number): string => {
  if (step < 60) return `${seconds.toFixed(decimals)} s`;
  return step < 3_600 ? `${seconds / 60} min` : `${seconds / 3_600} h`;
};
