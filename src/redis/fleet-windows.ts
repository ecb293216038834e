import { createHash } from 'node:crypto';
import type { RateWindow } from '../gate/keys/sliding-window.js';
import type { SharedKey } from '../gate/shared-limits.js';

/** Windows are kept in so many slices: they count too long by a thousandth of their length at most. */
const SLICES = 1_000;
/** Starts are reported together, within this share of the shortest window and this time. */
const REPORT_SHARE = 1 / 20;
const MAX_REPORT_MS = 50;

/** One window, as the script knows it. */
export interface FleetWindow {
  readonly id: string;
  /** The key that it applies to; empty for all. */
  readonly scope: string;
  readonly limit: number;
  readonly perMs: number;
  readonly sliceMs: number;
  readonly perCall: boolean;
}

/** The windows of a gate, and which keys they apply to. */
export interface Layout {
  readonly windows: readonly FleetWindow[];
  readonly shared: readonly number[];
  readonly keys: readonly (readonly [key: string, windows: readonly number[]])[];
  readonly argument: string;
  readonly reportMs: number;
}

const hashOf = (text: string): string => createHash('sha256').update(text).digest('hex').slice(0, 24);

/** The windows by what they apply to and their length: a member that sets another limit uses the same one. */
export function layoutOf(keys: readonly SharedKey[], sharedRate: readonly RateWindow[]): Layout {
  const windows: FleetWindow[] = [];
  // Of windows of one length the strictest counts.
  const add = (scope: string, rate: readonly RateWindow[]): number[] => {
    const from = windows.length;
    for (const { limit, perMs, unit = 'calls' } of [...rate].sort((a, b) => a.limit - b.limit)) {
      const id = hashOf(JSON.stringify([scope, perMs, unit]));
      if (windows.some((window) => window.id === id)) continue;
      const sliceMs = Math.max(1, Math.floor(perMs / SLICES));
      // Redis takes whole milliseconds.
      windows.push({ id, scope, limit, perMs: Math.ceil(perMs), sliceMs, perCall: unit === 'calls' });
    }
    return windows.slice(from).map((_, at) => from + at);
  };
  const shared = add('', sharedRate);
  const own = keys.map(({ key, rate }) => [key, add(key, rate)] as const);
  const lengths = windows.map(({ perMs }) => perMs);
  const position = (at: number): number => at + 1;
  return {
    windows,
    shared,
    keys: own,
    argument: JSON.stringify({
      w: windows.map(({ id, limit, perMs, sliceMs, perCall }) => [
        id,
        limit,
        perMs,
        sliceMs,
        perCall ? 1 : 0,
      ]),
      s: shared.map(position),
      k: own.map(([key, of]) => [key, of.map(position)]),
      t: Math.max(0, ...lengths),
    }),
    reportMs: Math.min(MAX_REPORT_MS, ...lengths.map((perMs) => Math.floor(perMs * REPORT_SHARE))),
  };
}

/** What this process has started, by window and slice of the monotonic clock, for as long as it counts. */
export class OwnStarts {
  readonly #slices = new Map<string, Map<number, number>>();

  note(
    { windows, shared, keys }: Layout,
    key: string,
    startedMs: number,
    amount: number,
    isCorrection = false,
  ): void {
    const own = keys.find(([candidate]) => candidate === key)?.[1] ?? [];
    for (const at of [...shared, ...own]) {
      const { id, sliceMs, perMs, perCall } = windows[at] as FleetWindow;
      if (perCall && isCorrection) continue;
      let slices = this.#slices.get(id);
      if (slices === undefined) {
        slices = new Map();
        this.#slices.set(id, slices);
      }
      const slice = Math.ceil(startedMs / sliceMs);
      slices.set(slice, (slices.get(slice) ?? 0) + (perCall ? 1 : amount));
      for (const old of slices.keys()) {
        if (old * sliceMs + perMs > startedMs) break;
        slices.delete(old);
      }
    }
  }

  /** What a window counts since then, each as old as the end of its slice. */
  since({ id, sliceMs }: FleetWindow, sinceMs: number): (readonly [startedMs: number, amount: number])[] {
    const starts: (readonly [startedMs: number, amount: number])[] = [];
    for (const [slice, amount] of this.#slices.get(id) ?? [])
      if (slice * sliceMs > sinceMs) starts.push([slice * sliceMs, amount]);
    return starts;
  }

  /**
   * Begins the windows that are new with what the longest of their kind counted, and returns them. (One that Redis still
   * knows from earlier may count starts twice until they have left it.)
   */
  change({ windows: before }: Layout, { windows: after }: Layout): readonly FleetWindow[] {
    const added = after.filter(({ id }) => before.every((window) => window.id !== id));
    for (const window of added) {
      const alike = before.filter(
        ({ scope, perCall }) => scope === window.scope && perCall === window.perCall,
      );
      const longest = alike.sort((a, b) => b.perMs - a.perMs)[0];
      const slices = new Map<number, number>();
      for (const [endMs, amount] of longest === undefined ? [] : this.since(longest, 0)) {
        const slice = Math.ceil(endMs / window.sliceMs);
        slices.set(slice, (slices.get(slice) ?? 0) + amount);
      }
      this.#slices.set(window.id, slices);
    }
    for (const { id } of before) if (after.every((window) => window.id !== id)) this.#slices.delete(id);
    return added;
  }
}
