import { fill, type Tone } from './timeline-style.js';

/** A character of a label is about as wide as this, in pixels. */
export const CHARACTER = 6.2;
/** A name cut shorter than this says nothing. */
const LEAST_CUT = 8;

/** A number of pixels as short as it can be written. */
export const px = (value: number): string => String(Math.round(value * 100) / 100);

/** About how wide a label is. */
export const widthOf = (label: string): number => label.length * CHARACTER;

/** A piece of text; nothing where there is none. */
export function svgText(x: number, y: number, text: string, tone: Tone, attributes: string): string {
  if (text === '') return '';
  return `<text x="${px(x)}" y="${px(y)}" ${attributes} ${fill(tone)}>${escaped(text)}</text>`;
}

/** As much of a label as there is room for, nothing where a cut one would say nothing. */
export function fitted(label: string, width: number): string {
  const room = Math.floor(width / CHARACTER);
  if (label.length <= room) return label;
  return room < LEAST_CUT ? '' : `${label.slice(0, room - 1)}…`;
}

const ENTITIES: Readonly<Record<string, string>> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' };

/** Text as XML takes it. Control characters and lone surrogates have no place there, escaped or not. */
export const escaped = (text: string): string =>
  text
    .replace(/[\p{Cc}\p{Cs}\ufffe\uffff]/gu, ' ')
    .replace(/[&<>"]/g, (character) => ENTITIES[character] ?? '');
