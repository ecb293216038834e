import { escaped, fitted, px, svgText, widthOf } from './svg-text.js';
import type { Axis } from './timeline-axis.js';
import type { Bar, Row, Strip } from './timeline-layout.js';
import { fill, hatch, type Tone } from './timeline-style.js';

const MAX_TRACKS = 4;
const CURVE = 64;
const LABEL = 'font-size="11.5"';

/** Draws the rows of a picture, and keeps in mind which tones they use. */
export class RowArtist {
  readonly used = new Set<Tone>();
  readonly #axis: Axis;
  readonly #id: string;
  /** Where the names of the rows stand, and how wide they may be. */
  readonly #nameX: number;
  readonly #nameWidth: number;

  constructor(axis: Axis, id: string, nameX: number, nameWidth: number) {
    this.#axis = axis;
    this.#id = id;
    this.#nameX = nameX;
    this.#nameWidth = nameWidth;
  }

  /** A row of bars, its name before it. */
  row({ label, bars }: Row, y: number, height: number): string {
    const name = svgText(this.#nameX, y + height / 2 + 4, fitted(label, this.#nameWidth), 'muted', LABEL);
    const drawn = bars.map((bar, i) => {
      const next = bars[i + 1];
      return this.#bar(bar, y, height, next === undefined ? this.#axis.right : this.#axis.x(next.startMs));
    });
    return `<g>${name}${drawn.join('')}</g>`;
  }

  #bar(bar: Bar, y: number, height: number, nextX: number): string {
    const x = this.#axis.x(bar.startMs);
    const length = this.#axis.x(bar.endMs) - x;
    // A gap tells bars apart that follow each other at once.
    const width = bar.kind === 'run' ? Math.max(length - 1, 1) : length;
    // What is too short to be seen would only make the picture large.
    if (width < 0.4) return '';
    this.used.add(bar.kind);
    const box = (top: number, tall: number, radius: number, paint: string): string =>
      `<rect x="${px(x)}" y="${px(top)}" width="${px(width)}" height="${px(tall)}" rx="${px(Math.min(radius, width / 2))}" ${paint}/>`;
    const middle = y + height / 2;
    const tall = Math.min(height, 16);
    const drawn = (...parts: string[]): string =>
      `<g><title>${escaped(bar.tip)}</title>${parts.join('')}</g>`;
    switch (bar.kind) {
      case 'alive':
        return drawn(box(y, height, 4, fill('alive')));
      case 'creating':
        return drawn(box(middle - 5, 10, 3, hatch('creating', this.#id)));
      case 'wait-permit':
      case 'wait-lease':
        return drawn(
          box(middle - tall / 2, tall, 3, hatch(bar.kind, this.#id)),
          this.#waitLabel(bar.label, x, middle, width, nextX),
        );
      case 'run':
        return drawn(
          box(y, height, 4, fill('run')),
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
    // On a plate of its own: letters on a hatching are hard to read.
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
        // Hundreds of short calls in one pixel look like one.
        if (to <= (drawnTo.get(`${kind} ${lane}`) ?? Number.NEGATIVE_INFINITY) + 0.3) return '';
        drawnTo.set(`${kind} ${lane}`, to);
        this.used.add(kind);
        const gap = to - x > 3 ? 0.8 : 0;
        const paint = kind === 'wait-call' ? hatch(kind, this.#id) : fill(kind);
        return `<rect x="${px(x)}" y="${px(top + lane * step)}" width="${px(to - x - gap)}" height="${px(step - 1.5)}" rx="1" ${paint}><title>${escaped(tip)}</title></rect>`;
      })
      .join('');
  }

  /** How many wait, for what; for when they are too many for rows of their own. Returns the height as well. */
  waitingCurve(waiting: readonly Row[], y: number): { readonly svg: string; readonly height: number } {
    const bars = waiting.flatMap((row) => row.bars);
    const all = this.#counts(bars);
    const most = Math.max(1, ...all.map(([, count]) => count));
    const bottom = y + CURVE;
    const area = (counts: readonly (readonly [x: number, count: number])[], paint: string): string => {
      const [first, last] = [counts[0], counts.at(-1)];
      if (first === undefined || last === undefined) return '';
      const steps = counts.map(([x, count]) => `H${px(x)}V${px(bottom - (count / most) * (CURVE - 4))}`);
      return `<path d="M${px(first[0])} ${px(bottom)}${steps.join('')}H${px(last[0])}V${px(bottom)}Z" ${paint}/>`;
    };
    const forLease = this.#counts(bars.filter(({ kind }) => kind === 'wait-lease'));
    const svg = [
      '<g>',
      `<title>Up to ${most} waiting at once</title>`,
      area(all, hatch('wait-permit', this.#id)),
      area(forLease, fill('paper')),
      area(forLease, hatch('wait-lease', this.#id)),
      svgText(this.#nameX, bottom - CURVE / 2, 'waiting', 'muted', LABEL),
      svgText(this.#nameX, bottom - CURVE / 2 + 15, `up to ${most}`, 'muted', 'font-size="10.5"'),
      '</g>',
    ];
    for (const { kind } of bars) this.used.add(kind);
    return { svg: svg.join(''), height: CURVE };
  }

  /** How many of the bars there are from each place on, no finer than can be seen. */
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
