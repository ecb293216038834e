/** A log-log line plot as SVG, readable on light and on dark ground. */

export interface Series {
  readonly name: string;
  /** Drawn stronger than the others. */
  readonly strong?: boolean;
  /** Said at the end of a line that goes no further. */
  readonly ends?: string;
  readonly points: readonly { readonly x: number; readonly y: number }[];
}

export interface Plot {
  readonly title: string;
  readonly subtitle: string;
  readonly xLabel: string;
  readonly yLabel: string;
  readonly series: readonly Series[];
}

const WIDTH = 860;
const HEIGHT = 520;
const FRAME = { left: 72, right: 214, top: 72, bottom: 58 };

// Distinguishable by most color-blind readers, on white and on black (after Okabe and Ito); dashes help the others.
const COLOURS = [
  '#d55e00',
  '#0072b2',
  '#009e73',
  '#cc79a7',
  '#b8860b',
  '#56b4e9',
  '#7a6ff0',
  '#8a8a8a',
  '#a0522d',
];
const DASHES = ['', '6 3', '2 3', '8 3 2 3', '', '6 3', '2 3', '8 3 2 3', ''];

const STYLE = `
  text { font: 12px system-ui, sans-serif; fill: #24292f; }
  .title { font-size: 16px; font-weight: 600; }
  .quiet { fill: #57606a; }
  .grid { stroke: #d0d7de; stroke-width: 1; }
  .strong { font-weight: 700; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .quiet { fill: #9198a1; }
    .grid { stroke: #3d444d; }
  }`;

const escaped = (text: string): string =>
  text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;');

const powersOfTen = (low: number, high: number): number[] => {
  const powers: number[] = [];
  for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++) powers.push(10 ** p);
  return powers;
};

const round = (value: number): number => Math.round(value * 10) / 10;

/** Labels at their lines' ends, moved apart where they would cover each other. */
function spread(wanted: readonly number[], gap: number, lowest: number): number[] {
  const order = wanted.map((y, i) => ({ y, i })).sort((a, b) => a.y - b.y);
  let free = Number.NEGATIVE_INFINITY;
  for (const label of order) {
    label.y = Math.max(label.y, free);
    free = label.y + gap;
  }
  let ceiling = lowest;
  for (const label of order.toReversed()) {
    label.y = Math.min(label.y, ceiling);
    ceiling = label.y - gap;
  }
  const placed = new Array<number>(wanted.length);
  for (const { y, i } of order) placed[i] = y;
  return placed;
}

export function plotSvg({ title, subtitle, xLabel, yLabel, series }: Plot): string {
  const drawn = series.filter(({ points }) => points.length > 0);
  const all = drawn.flatMap(({ points }) => points);
  const xTicks = powersOfTen(Math.min(...all.map(({ x }) => x)), Math.max(...all.map(({ x }) => x)));
  const yTicks = powersOfTen(Math.min(...all.map(({ y }) => y)), Math.max(...all.map(({ y }) => y)));
  const right = WIDTH - FRAME.right;
  const bottom = HEIGHT - FRAME.bottom;
  const scale = (ticks: readonly number[], from: number, to: number) => {
    const low = Math.log10(ticks[0]!);
    const high = Math.log10(ticks.at(-1)!);
    return (value: number): number => round(from + ((Math.log10(value) - low) / (high - low)) * (to - from));
  };
  const xOf = scale(xTicks, FRAME.left, right);
  const yOf = scale(yTicks, bottom, FRAME.top);

  const parts: string[] = [];
  for (const tick of xTicks) {
    const x = xOf(tick);
    parts.push(`<line class="grid" x1="${x}" y1="${FRAME.top}" x2="${x}" y2="${bottom}"/>`);
    parts.push(
      `<text class="quiet" x="${x}" y="${bottom + 18}" text-anchor="middle">${tick.toLocaleString('en')}</text>`,
    );
  }
  for (const tick of yTicks) {
    const y = yOf(tick);
    parts.push(`<line class="grid" x1="${FRAME.left}" y1="${y}" x2="${right}" y2="${y}"/>`);
    parts.push(
      `<text class="quiet" x="${FRAME.left - 8}" y="${y + 4}" text-anchor="end">${tick.toLocaleString('en')}</text>`,
    );
  }
  const labels = spread(
    drawn.map(({ points }) => yOf(points.at(-1)!.y)),
    15,
    bottom,
  );
  for (const [i, { name, strong, ends, points }] of drawn.entries()) {
    const colour = COLOURS[i % COLOURS.length]!;
    const path = points.map(({ x, y }) => `${xOf(x)},${yOf(y)}`).join(' ');
    const dash = strong ? '' : ` stroke-dasharray="${DASHES[i % DASHES.length]!}"`;
    parts.push(
      `<polyline points="${path}" fill="none" stroke="${colour}" stroke-width="${strong ? 4 : 1.8}" stroke-linejoin="round"${dash}/>`,
    );
    for (const { x, y } of points) {
      parts.push(`<circle cx="${xOf(x)}" cy="${yOf(y)}" r="${strong ? 4 : 2.5}" fill="${colour}"/>`);
    }
    const y = labels[i]!;
    const label = `${escaped(name)}${ends === undefined ? '' : ` (${escaped(ends)})`}`;
    parts.push(
      `<line x1="${right + 8}" y1="${y}" x2="${right + 22}" y2="${y}" stroke="${colour}" stroke-width="3"/>`,
    );
    parts.push(`<text x="${right + 27}" y="${y + 4}"${strong ? ' class="strong"' : ''}>${label}</text>`);
  }
  const middleY = (FRAME.top + bottom) / 2;
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-labelledby="t d">
<title id="t">${escaped(title)}</title>
<desc id="d">${escaped(subtitle)}</desc>
<style>${STYLE}
</style>
<text class="title" x="${FRAME.left}" y="28">${escaped(title)}</text>
<text class="quiet" x="${FRAME.left}" y="48">${escaped(subtitle)}</text>
${parts.join('\n')}
<text x="${(FRAME.left + right) / 2}" y="${HEIGHT - 14}" text-anchor="middle">${escaped(xLabel)}</text>
<text x="20" y="${middleY}" text-anchor="middle" transform="rotate(-90 20 ${middleY})">${escaped(yLabel)}</text>
</svg>
`;
}
