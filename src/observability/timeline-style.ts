/**
 * The look of the pictures. Colours stand both as attributes and in the style sheet: a viewer without CSS shows the light
 * picture, one with CSS follows the reader's preference. No custom properties, which many viewers of SVG do not know.
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

/** What a shape stands for. */
export type Tone = keyof typeof LIGHT;

/** What lines are drawn in. */
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

/** Waits are hatched, so that they are told from work without colour as well. */
export const HATCHED: readonly Tone[] = ['wait-permit', 'wait-lease', 'wait-call', 'creating'];

/** `class` and the attribute that says the same to a viewer without CSS. */
export const fill = (tone: Tone): string => `class="f-${tone}" fill="${LIGHT[tone]}"`;
export const stroke = (tone: Line): string => `class="s-${tone}" stroke="${LIGHT[tone]}"`;
/** A hatched area of the picture called `id`. */
export const hatch = (tone: Tone, id: string): string => `fill="url(#${id}-${tone})"`;

/** The style sheet and the hatchings of the picture called `id`. */
export function definitions(id: string): string {
  const rules = (colours: Readonly<Record<Tone, string>>): string =>
    (Object.keys(colours) as Tone[]).map((tone) => `.${id} .f-${tone}{fill:${colours[tone]}}`).join('') +
    LINES.map((tone) => `.${id} .s-${tone}{stroke:${colours[tone]}}`).join('');
  const patterns = HATCHED.map((tone) => {
    // Leaning one way for waiting, the other for being made.
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
