/** A condition that callers can await. */
export class Condition {
  readonly #isMet: () => boolean;
  #waiters: (() => void)[] = [];

  constructor(isMet: () => boolean) {
    this.#isMet = isMet;
  }

  /** Fulfills as soon as the condition is met. */
  reached(): Promise<void> {
    if (this.#isMet()) return Promise.resolve();
    return new Promise((resolve) => this.#waiters.push(resolve));
  }

  /** To be called whenever it may have been met. */
  check(): void {
    if (this.#waiters.length === 0 || !this.#isMet()) return;
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const resolve of waiters) resolve();
  }
}
