/** Something that is come to sooner or later, and that somebody may wait for. */
export class Milestone {
  readonly #isReached: () => boolean;
  #listeners: (() => void)[] = [];

  constructor(isReached: () => boolean) {
    this.#isReached = isReached;
  }

  /** Settles as soon as it is reached. */
  reached(): Promise<void> {
    if (this.#isReached()) return Promise.resolve();
    return new Promise((resolve) => this.#listeners.push(resolve));
  }

  /** To be called whenever it may have been reached. */
  check(): void {
    if (this.#listeners.length === 0 || !this.#isReached()) return;
    const listeners = this.#listeners;
    this.#listeners = [];
    for (const resolve of listeners) resolve();
  }
}
