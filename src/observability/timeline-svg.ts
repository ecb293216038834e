import { shownDuration } from './shown-duration.js';
import { escaped, px, svgText, widthOf } from './svg-text.js';
import { type Axis, axisOf } from './timeline-axis.js';
import type { Layout } from './timeline-layout.js';
import { RowArtist } from './timeline-rows.js';
import { definitions, fill, HATCHED, hatch, stroke, type Tone } from './timeline-style.js';

/** One recording in a picture. */
export interface SvgPanel {
  readonly title: string;
  readonly layout: Layout;
}

const MARGIN = 24;
const ROW = 42;
const ROW_GAP = 6;
const WAIT_ROW = 16;
const WAIT_GAP = 3;
/** More rows of waiting than this are drawn as a curve of how many wait. */
const MAX_WAIT_ROWS = 8;
const TICK = 70;

const LEGEND: readonly [Tone, string][] = [
  ['run', 'running'],
  ['attempt', 'a service at work'],
  ['tool', 'a tool at work'],
  ['wait-call', 'held up at a service'],
  ['wait-permit', 'waiting to be admitted'],
  ['wait-lease', 'waiting for an instance'],
  ['creating', 'instance being created'],
  ['failed', 'failed'],
];

/** Draws recordings below each other on one scale. */
export function drawSvg(panels: readonly SvgPanel[], title: string, width: number): string {
  return new Picture(panels, title, width).draw();
}

class Picture {
  readonly #panels: readonly SvgPanel[];
  readonly #title: string;
  readonly #width: number;
  readonly #axis: Axis;
  // Names of classes and patterns are the page's: pictures put into one page must not meddle with it or each other.
  readonly #id: string;
  readonly #artist: RowArtist;
  #y = MARGIN;

  constructor(panels: readonly SvgPanel[], title: string, width: number) {
    this.#panels = panels;
    this.#title = title;
    this.#width = width;
    this.#id = `timeline-${hashOf(JSON.stringify([panels, title, width]))}`;
    const names = panels.flatMap(({ layout }) =>
      [...layout.rows, ...layout.waiting].map(({ label }) => label),
    );
    const widest = names.reduce((most, name) => Math.max(most, widthOf(name)), widthOf('waiting'));
    const nameWidth = Math.min(widest + 1, width / 4);
    const endMs = panels.reduce((last, { layout }) => Math.max(last, layout.endMs), 1);
    this.#axis = axisOf(endMs, MARGIN + nameWidth + 12, width - MARGIN, TICK);
    this.#artist = new RowArtist(this.#axis, this.#id, MARGIN, nameWidth);
  }

  draw(): string {
    const heading = this.#heading();
    // What the legend has to explain is known once the panels are drawn, and they are drawn below it.
    const legendY = this.#y;
    this.#y = 0;
    const panels = this.#panels.map((panel) => this.#panel(panel)).join('\n');
    const ticks = this.#ticks();
    const legend = this.#legend(legendY);
    const below = legend.bottom + 14;
    const [width, height] = [this.#width, Math.ceil(below + this.#y + MARGIN / 2)];
    return [
      `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" class="${this.#id}" role="img" aria-label="${escaped(this.#title || 'Timeline')}">`,
      definitions(this.#id),
      `<rect width="${width}" height="${height}" ${fill('paper')}/>`,
      heading,
      legend.svg,
      `<g transform="translate(0 ${px(below)})">`,
      panels,
      ticks,
      '</g>',
      '</svg>\n',
    ].join('\n');
  }

  #heading(): string {
    if (this.#title === '') return '';
    const text = svgText(MARGIN, this.#y + 14, this.#title, 'ink', 'font-size="18" font-weight="650"');
    this.#y += 28;
    return text;
  }

  #legend(top: number): { readonly svg: string; readonly bottom: number } {
    let x = MARGIN;
    let y = top;
    const entries = LEGEND.filter(([tone]) => this.#artist.used.has(tone)).map(([tone, words]) => {
      const wide = 22 + widthOf(words);
      if (x > MARGIN && x + wide > this.#width - MARGIN) {
        x = MARGIN;
        y += 19;
      }
      const paint = HATCHED.includes(tone) ? hatch(tone, this.#id) : fill(tone);
      const entry =
        `<rect x="${px(x)}" y="${px(y + 2)}" width="16" height="11" rx="2.5" ${paint}/>` +
        svgText(x + 22, y + 11.5, words, 'muted', 'font-size="11.5"');
      x += wide + 14;
      return entry;
    });
    return { svg: `<g>${entries.join('')}</g>`, bottom: entries.length === 0 ? y : y + 15 };
  }

  #panel({ title, layout }: SvgPanel): string {
    const titled = title !== '' || this.#panels.length > 1;
    const headings = titled ? this.#panelHeading(title, layout) : '';
    const top = this.#y;
    const rows = layout.rows.map((row) => this.#row(row, ROW, ROW_GAP));
    if (rows.length === 0) this.#y += ROW + ROW_GAP;
    rows.push(...this.#waiting(layout));
    const bottom = this.#y;
    this.#y += 16;
    const grid = this.#axis.ticks.map(({ x }) => `M${px(x)} ${px(top - 4)}V${px(bottom)}`).join('');
    const endX = px(this.#axis.x(layout.endMs));
    return [
      `<g><path d="${grid}" ${stroke('grid')} fill="none"/>`,
      headings,
      ...rows,
      `<path d="M${endX} ${px(top - (titled ? 24 : 4))}V${px(bottom)}" ${stroke('ink')} stroke-width="1.5" fill="none"/></g>`,
    ].join('\n');
  }

  /** The panel's title, and at its end how long it took: told as a multiple where it can be compared. */
  #panelHeading(title: string, layout: Layout): string {
    const y = this.#y + 16;
    this.#y += 28;
    const first = this.#panels[0]?.layout;
    const comparable = first !== undefined && layout !== first && layout.requests === first.requests;
    const length = shownDuration(layout.endMs);
    const told = comparable ? `${length}, ${(first.endMs / layout.endMs).toFixed(2)} × as fast` : length;
    const endX = this.#axis.x(layout.endMs);
    const roomBehind = this.#axis.right - endX > widthOf(told) + 30;
    const at = roomBehind ? 'text-anchor="start"' : 'text-anchor="end"';
    return (
      svgText(MARGIN, y, title, 'ink', 'font-size="14" font-weight="600"') +
      svgText(endX + (roomBehind ? 8 : -8), y, told, 'ink', `font-size="13" font-weight="600" ${at}`)
    );
  }

  #waiting({ waiting }: Layout): string[] {
    if (waiting.length === 0) return [];
    this.#y += 2;
    if (waiting.length <= MAX_WAIT_ROWS) return waiting.map((row) => this.#row(row, WAIT_ROW, WAIT_GAP));
    const { svg, height } = this.#artist.waitingCurve(waiting, this.#y);
    this.#y += height;
    return [svg];
  }

  #row(row: Layout['rows'][number], height: number, gap: number): string {
    const svg = this.#artist.row(row, this.#y, height);
    this.#y += height + gap;
    return svg;
  }

  #ticks(): string {
    const y = this.#y + 2;
    this.#y += 10;
    return this.#axis.ticks
      .map(({ x, label }, i) => {
        const anchor = i === 0 ? 'start' : 'middle';
        return svgText(x, y, label, 'muted', `font-size="11.5" text-anchor="${anchor}"`);
      })
      .join('');
  }
}

/** FNV-1a: the same picture has the same names each time. */
const hashOf = (text: string): string => {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return (hash >>> 0).toString(36);
};
