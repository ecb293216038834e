/**
 * Colors, text and the time axis of the pictures.
 *
 * Colors are set as attributes and in the style sheet: a viewer without CSS shows the light picture, one with CSS follows the
 * reader's preference. Custom properties are avoided because many SVG viewers lack them.
 */

const LIGHT = {
  paper: '#ffffff',
  ink: '#1b2333',
  muted: '#5f6b80',
  grid: '#e3e7ee',
  alive: '#f0f3f8',
  run: '#cfe0fb',
  attempt: '#2b6be0',
  tool: '#11897a',
  'wait-call': '#e08e00',
  'wait-permit': '#8a94a6',
  'wait-lease': '#7a5bd0',
  creating: '#2f9460',
  failed: '#d3302f',
} as const;

/** The meaning of a shape. */
export type Tone = keyof typeof LIGHT;

/** The colors of lines. */
const LINES = ['ink', 'grid'] as const;
type Line = (typeof LINES)[number];

const DARK: Readonly<Record<Tone, string>> = {
  paper: '#0f141d',
  ink: '#e8ecf4',
  muted: '#98a3b7',
  grid: '#262f3e',
  alive: '#1a2230',
  run: '#24406f',
  attempt: '#6ea3ff',
  tool: '#3fc7b4',
  'wait-call': '#f5b53d',
  'wait-permit': '#77839a',
  'wait-lease': '#a68cf5',
  creating: '#55bd88',
  failed: '#ff6a5f',
};

/** Waits are hatched, so that they differ from work without color too. */
const HATCHED: readonly Tone[] = ['wait-permit', 'wait-lease', 'wait-call', 'creating'];

/** `class`, and the equivalent attribute for a viewer without CSS. */
export const fill = (tone: Tone): string => `class="f-${tone}" fill="${LIGHT[tone]}"`;
export const stroke = (tone: Line): string => `class="s-${tone}" stroke="${LIGHT[tone]}"`;
/** An area in the picture `id`, hatched or plain. */
export const paint = (tone: Tone, id: string): string =>
  HATCHED.includes(tone) ? `fill="url(#${id}-${tone})"` : fill(tone);

/** The style sheet and the hatch patterns of the picture `id`. */
export function definitions(id: string): string {
  const rules = (colors: Readonly<Record<Tone, string>>): string =>
    (Object.keys(colors) as Tone[]).map((tone) => `.${id} .f-${tone}{fill:${colors[tone]}}`).join('') +
    LINES.map((tone) => `.${id} .s-${tone}{stroke:${colors[tone]}}`).join('');
  const patterns = HATCHED.map((tone) => {
    // The slope distinguishes creation from waiting.
    const angle = tone === 'creating' ? -45 : 45;
    return (
      `<pattern id="${id}-${tone}" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(${angle})">` +
      `<rect width="5" height="5" ${fill(tone)} opacity=".22"/><rect width="2" height="5" ${fill(tone)}/></pattern>`
    );
  });
  return (
    `<style>.${id} text{font-family:Inter,system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;font-variant-numeric:tabular-nums}` +
    `${rules(LIGHT)}@media (prefers-color-scheme:dark){${rules(DARK)}}</style><defs>${patterns.join('')}</defs>`
  );
}

/** Approximate width of a character, in pixels. */
const CHARACTER = 6.2;
/** A label cut to fewer characters is omitted. */
const LEAST_CUT = 8;

/** A number of pixels with at most two decimals. */
export const px = (value: number): string => String(Math.round(value * 100) / 100);

/** Approximate width of a label. */
export const widthOf = (label: string): number => label.length * CHARACTER;

/** A text element; an empty string for an empty text. */
export function svgText(x: number, y: number, text: string, tone: Tone, attributes: string): string {
  if (text === '') return '';
  return `<text x="${px(x)}" y="${px(y)}" ${attributes} ${fill(tone)}>${escaped(text)}</text>`;
}

/** The label, cut to the width; an empty string if too little is left. */
export function fitted(label: string, width: number): string {
  const room = Math.floor(width / CHARACTER);
  if (label.length <= room) return label;
  return room < LEAST_CUT ? '' : `${label.slice(0, room - 1)}…`;
}

const ENTITIES: Readonly<Record<string, string>> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' };

/** Escapes text for XML, which permits no control characters and no lone surrogates, escaped or not. Bidirectional
 * controls are replaced too: they would reorder the text around them. */
export const escaped = (text: string): string =>
  text
    .replace(/[\p{Cc}\p{Cs}\p{Bidi_Control}\ufffe\uffff]/gu, ' ')
    .replace(/[&<>"]/g, (character) => ENTITIES[character] ?? '');

/** A time axis from 0 to `endMs`. */
export interface Axis {
  /** The position of a time. */
  x(ms: number): number;
  /** The position of its end. */
  readonly right: number;
  readonly ticks: readonly { readonly ms: number; readonly x: number; readonly label: string }[];
}

const STEPS_S = [
  0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1_200, 1_800,
  3_600,
];

/** The axis with the finest round steps that leave `tickWidth` for each label. */
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
