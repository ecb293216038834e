import { nowMs } from '../internal/clock.js';

/** What a key can be: as the stats of a gate have it. */
export const KEY_STATES = ['ready', 'easing', 'throttled', 'spent', 'dead'] as const;
export type KeyState = (typeof KEY_STATES)[number];

interface Rest {
  readonly state: KeyState;
  readonly untilMs: number;
}

/** The states of keys as far as events tell of them: of those that have met a limit. */
export class KeyStates {
  /** By gate and key. */
  readonly #gates = new Map<string, Map<string, Rest>>();

  /** A key rests; for as long as it lives where no time is known. */
  rests(gate: string, key: string, state: KeyState, forMs = Number.POSITIVE_INFINITY): void {
    let keys = this.#gates.get(gate);
    if (keys === undefined) {
      keys = new Map();
      this.#gates.set(gate, keys);
    }
    keys.set(key, { state, untilMs: nowMs() + forMs });
  }

  /** A key serves again. */
  restored(gate: string, key: string): void {
    this.rests(gate, key, 'ready');
  }

  /** Each gate with the states of its keys, now. */
  *now(): Generator<readonly [gate: string, states: readonly KeyState[]]> {
    const atMs = nowMs();
    for (const [gate, keys] of this.#gates) {
      yield [gate, [...keys.values()].map(({ state, untilMs }) => (untilMs <= atMs ? 'ready' : state))];
    }
  }
}
