/** Text for people: durations, and strings from outside on one line. */

/** A duration with its unit: `0.4 ms`, `840 ms`, `12.5 s`, `3 min 20 s`, `1 h 5 min`. */
export function formatDuration(ms: number): string {
  if (ms < 0.95) return `${ms.toFixed(1)} ms`;
  if (ms < 999.5) return `${Math.round(ms)} ms`;
  if (ms < 179_950) return `${(ms / 1000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 3_600) return twoUnits(Math.floor(seconds / 60), 'min', seconds % 60, 's');
  const minutes = Math.round(seconds / 60);
  return twoUnits(Math.floor(minutes / 60), 'h', minutes % 60, 'min');
}

const twoUnits = (whole: number, unit: string, remainder: number, smallUnit: string): string =>
  remainder === 0 ? `${whole} ${unit}` : `${whole} ${unit} ${remainder} ${smallUnit}`;

/**
 * Escapes control characters, line separators, bidirectional controls and lone surrogates: a task id or a message from
 * outside can neither begin a line of its own nor reorder the rest of its line on a terminal.
 */
export const escapeControls = (text: string): string =>
  text.replace(/[\p{Cc}\p{Zl}\p{Zp}\p{Bidi_Control}\p{Cs}]/gu, escapeCharacter);

const escapeCharacter = (character: string): string =>
  ({ '\n': '\\n', '\r': '\\r', '\t': '\\t' })[character] ??
  `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`;
