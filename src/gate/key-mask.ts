import { withoutCredentials } from '../internal/credentials.js';
import { TextMask } from '../internal/text-mask.js';
import { type Mask, together } from '../internal/told-error.js';

/** From this length on, the last four characters of a key give nothing away. */
const LONG_ENOUGH = 16;

/**
 * Keeps keys out of what is told. A key is known by its place among the gate's keys and, if it is long enough, by its
 * last four characters: `#2…9f3a`. What looks like a credential is hidden too: a gate without keys has one all the same,
 * which only the client knows.
 */
export class KeyMask implements Mask {
  readonly #labels = new Map<string, string>();
  readonly #mask: TextMask;

  constructor(keys: readonly string[]) {
    keys.forEach((key, i) => {
      this.#labels.set(key, `#${i + 1}${key.length < LONG_ENOUGH ? '' : `…${key.slice(-4)}`}`);
    });
    this.#mask = new TextMask(keys.map((text) => ({ text, label: this.labelOf(text) })));
  }

  /** How a key is told; what has no key is told as the service itself. */
  labelOf(key: string): string {
    return this.#labels.get(key) ?? 'service';
  }

  text(text: string): string {
    return withoutCredentials(this.#mask.text(text));
  }

  frame(line: string): string {
    return this.text(line);
  }

  /** A mask that hides what another hides, too. */
  with(other: Mask | undefined): Mask {
    return other === undefined ? this : together([this, other]);
  }
}
