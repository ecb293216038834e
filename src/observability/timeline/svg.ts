import { formatDuration } from '../../internal/format.js';
import type { Bar, Layout, Row, Strip } from './layout.js';
import {
  type Axis,
  axisOf,
  definitions,
  escaped,
  fill,
  fitted,
  paint,
  px,
  stroke,
  svgText,
  type Tone,
  widthOf,
} from './svg-primitives.js';

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
/** More rows of waiting requests than this are drawn as a curve of their number. */
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

/** Draws recordings below each other on one time axis. */
export function drawSvg(panels: readonly SvgPanel[], title: string, width: number): string {
  return new Picture(panels, title, width).draw();
}

class Picture {
  readonly #panels: readonly SvgPanel[];
  readonly #title: string;
  readonly #width: number;
  readonly #axis: Axis;
  // Class and pattern names are global to a page: several pictures in one page must not affect it or each other.
  readonly #id: string;
  readonly #rows: RowWriter;
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
    this.#rows = new RowWriter(this.#axis, this.#id, nameWidth);
  }

  draw(): string {
    const heading = this.#heading();
    // The legend stands above the panels, but its entries are known only after these were drawn.
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
    const entries = LEGEND.filter(([tone]) => this.#rows.used.has(tone)).map(([tone, words]) => {
      const wide = 22 + widthOf(words);
      if (x > MARGIN && x + wide > this.#width - MARGIN) {
        x = MARGIN;
        y += 19;
      }
      const entry =
        `<rect x="${px(x)}" y="${px(y + 2)}" width="16" height="11" rx="2.5" ${paint(tone, this.#id)}/>` +
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

  /** The panel's title and duration, with the speedup over the first panel if both have as many requests. */
  #panelHeading(title: string, layout: Layout): string {
    const y = this.#y + 16;
    this.#y += 28;
    const first = this.#panels[0]?.layout;
    const comparable = first !== undefined && layout !== first && layout.requests === first.requests;
    const length = formatDuration(layout.endMs);
    const duration = comparable ? `${length}, ${(first.endMs / layout.endMs).toFixed(2)} × as fast` : length;
    const endX = this.#axis.x(layout.endMs);
    const roomBehind = this.#axis.right - endX > widthOf(duration) + 30;
    const at = roomBehind ? 'text-anchor="start"' : 'text-anchor="end"';
    return (
      svgText(MARGIN, y, title, 'ink', 'font-size="14" font-weight="600"') +
      svgText(endX + (roomBehind ? 8 : -8), y, duration, 'ink', `font-size="13" font-weight="600" ${at}`)
    );
  }

  #waiting({ waiting }: Layout): string[] {
    if (waiting.length === 0) return [];
    this.#y += 2;
    if (waiting.length <= MAX_WAIT_ROWS) return waiting.map((row) => this.#row(row, WAIT_ROW, WAIT_GAP));
    const curve = this.#rows.waitingCurve(waiting, this.#y);
    this.#y += CURVE;
    return [curve];
  }

  #row(row: Row, height: number, gap: number): string {
    const svg = this.#rows.row(row, this.#y, height);
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

/** FNV-1a: the same picture has the same names every time. */
const hashOf = (text: string): string => {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return (hash >>> 0).toString(36);
};

const MAX_TRACKS = 4;
const CURVE = 64;
const LABEL = 'font-size="11.5"';

/** Draws the rows of a picture and records which tones they use. */
class RowWriter {
  readonly used = new Set<Tone>();
  readonly #axis: Axis;
  readonly #id: string;
  readonly #nameWidth: number;

  constructor(axis: Axis, id: string, nameWidth: number) {
    this.#axis = axis;
    this.#id = id;
    this.#nameWidth = nameWidth;
  }

  /** A row: its name, then its bars. */
  row({ label, bars }: Row, y: number, height: number): string {
    const name = svgText(MARGIN, y + height / 2 + 4, fitted(label, this.#nameWidth), 'muted', LABEL);
    const drawn = bars.map((bar, i) => {
      const next = bars[i + 1];
      return this.#bar(bar, y, height, next === undefined ? this.#axis.right : this.#axis.x(next.startMs));
    });
    return `<g>${name}${drawn.join('')}</g>`;
  }

  #bar(bar: Bar, y: number, height: number, nextX: number): string {
    const x = this.#axis.x(bar.startMs);
    const length = this.#axis.x(bar.endMs) - x;
    // A gap separates adjacent bars.
    const width = bar.kind === 'run' ? Math.max(length - 1, 1) : length;
    // Invisible bars would only enlarge the file.
    if (width < 0.4) return '';
    this.used.add(bar.kind);
    const box = (top: number, tall: number, radius: number): string =>
      `<rect x="${px(x)}" y="${px(top)}" width="${px(width)}" height="${px(tall)}" rx="${px(Math.min(radius, width / 2))}" ${paint(bar.kind, this.#id)}/>`;
    const middle = y + height / 2;
    const tall = Math.min(height, 16);
    const drawn = (...parts: string[]): string =>
      `<g><title>${escaped(bar.tip)}</title>${parts.join('')}</g>`;
    switch (bar.kind) {
      case 'alive':
        return drawn(box(y, height, 4));
      case 'creating':
        return drawn(box(middle - 5, 10, 3));
      case 'wait-permit':
      case 'wait-lease':
        return drawn(box(middle - tall / 2, tall, 3), this.#waitLabel(bar.label, x, middle, width, nextX));
      case 'run':
        return drawn(
          box(y, height, 4),
          this.#runLabel(bar, x, y, width, height),
          this.#strips(bar.strips, y, height),
          bar.failed ? this.#failedEnd(x + width, y, height) : '',
        );
    }
  }

  #runLabel({ label, strips }: Bar, x: number, y: number, width: number, height: number): string {
    const baseline = strips.length === 0 ? y + height / 2 + 4 : y + 14;
    return svgText(x + 6, baseline, fitted(label, width - 12), 'ink', `${LABEL} font-weight="550"`);
  }

  /** Inside where there is room, else behind where nothing follows soon. */
  #waitLabel(label: string, x: number, middle: number, width: number, nextX: number): string {
    const look = 'font-size="10.5"';
    const wide = widthOf(label);
    if (wide + 14 > width && x + width + wide + 10 < nextX) {
      return svgText(x + width + 5, middle + 3.8, label, 'ink', look);
    }
    const text = fitted(label, width - 14);
    if (text === '') return '';
    // On a plain background: text on a hatch pattern is hard to read.
    const plate = `<rect x="${px(x + 4)}" y="${px(middle - 6)}" width="${px(widthOf(text) + 5)}" height="12" rx="2.5" ${fill('paper')}/>`;
    return plate + svgText(x + 7, middle + 3.8, text, 'ink', look);
  }

  #failedEnd(x: number, y: number, height: number): string {
    this.used.add('failed');
    return `<rect x="${px(x - 3)}" y="${px(y)}" width="3" height="${height}" rx="1.5" ${fill('failed')}/>`;
  }

  #strips(strips: readonly Strip[], y: number, height: number): string {
    const tracks = Math.min(MAX_TRACKS, 1 + Math.max(0, ...strips.map(({ track }) => track)));
    const top = y + 19;
    const step = Math.min((height - 22) / tracks, 18);
    const drawnTo = new Map<string, number>();
    return strips
      .map(({ kind, startMs, endMs, track, tip }) => {
        const lane = Math.min(track, MAX_TRACKS - 1);
        const x = this.#axis.x(startMs);
        const to = Math.max(this.#axis.x(endMs), x + 0.8);
        // Hundreds of short calls within one pixel look like one.
        if (to <= (drawnTo.get(`${kind} ${lane}`) ?? Number.NEGATIVE_INFINITY) + 0.3) return '';
        drawnTo.set(`${kind} ${lane}`, to);
        this.used.add(kind);
        const gap = to - x > 3 ? 0.8 : 0;
        return `<rect x="${px(x)}" y="${px(top + lane * step)}" width="${px(to - x - gap)}" height="${px(step - 1.5)}" rx="1" ${paint(kind, this.#id)}><title>${escaped(tip)}</title></rect>`;
      })
      .join('');
  }

  /** A curve of the number of waiting requests, used when there are too many for rows of their own. */
  waitingCurve(waiting: readonly Row[], y: number): string {
    const bars = waiting.flatMap((row) => row.bars);
    const all = this.#counts(bars);
    const most = Math.max(1, ...all.map(([, count]) => count));
    const bottom = y + CURVE;
    const area = (counts: readonly (readonly [x: number, count: number])[], look: string): string => {
      const [first, last] = [counts[0], counts.at(-1)];
      if (first === undefined || last === undefined) return '';
      const steps = counts.map(([x, count]) => `H${px(x)}V${px(bottom - (count / most) * (CURVE - 4))}`);
      return `<path d="M${px(first[0])} ${px(bottom)}${steps.join('')}H${px(last[0])}V${px(bottom)}Z" ${look}/>`;
    };
    const forLease = this.#counts(bars.filter(({ kind }) => kind === 'wait-lease'));
    for (const { kind } of bars) this.used.add(kind);
    return [
      '<g>',
      `<title>Up to ${most} waiting at once</title>`,
      area(all, paint('wait-permit', this.#id)),
      area(forLease, fill('paper')),
      area(forLease, paint('wait-lease', this.#id)),
      svgText(MARGIN, bottom - CURVE / 2, 'waiting', 'muted', LABEL),
      svgText(MARGIN, bottom - CURVE / 2 + 15, `up to ${most}`, 'muted', 'font-size="10.5"'),
      '</g>',
    ].join('');
  }

  /** The number of bars from each position on, at visible resolution. */
  #counts(bars: readonly Bar[]): [x: number, count: number][] {
    const changes = bars
      .flatMap(({ startMs, endMs }) => [[startMs, 1] as const, [endMs, -1] as const])
      .sort(([a], [b]) => a - b);
    const counts: [x: number, count: number][] = [];
    let count = 0;
    for (const [atMs, change] of changes) {
      count += change;
      const x = this.#axis.x(atMs);
      const last = counts.at(-1);
      if (last !== undefined && x - last[0] < 0.4) last[1] = count;
      else counts.push([x, count]);
    }
    return counts;
  }
}
