/** The largest (or smallest) of the readings of the last `windowMs`, at the cost of one number a slice. */
export class Extreme {
  readonly #pick: (a: number, b: number) => number;
  readonly #windowMs: number;
  readonly #sliceMs: number;
  #slices: { readonly fromMs: number; value: number }[] = [];

  constructor(pick: (a: number, b: number) => number, windowMs: number, sliceMs: number) {
    this.#pick = pick;
    this.#windowMs = windowMs;
    this.#sliceMs = sliceMs;
  }

  note(value: number, nowMs: number): void {
    const last = this.#slices.at(-1);
    if (last !== undefined && nowMs - last.fromMs < this.#sliceMs) last.value = this.#pick(last.value, value);
    else this.#slices.push({ fromMs: nowMs, value });
    this.#slices = this.#slices.filter(({ fromMs }) => nowMs - fromMs <= this.#windowMs);
  }

  /** `undefined` where nothing was read. */
  get value(): number | undefined {
    return this.#slices.length === 0
      ? undefined
      : this.#slices.map(({ value }) => value).reduce((a, b) => this.#pick(a, b));
  }
}
