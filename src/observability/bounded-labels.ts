/** Names beyond this many are told as `other`. */
const MAX_NAMES = 100;

/**
 * Keeps the values of a metric's label few. Names of pools, gates and tools are few by nature; but a host that makes a gate
 * for each customer, or takes tool names from a model, must not fill the memory of its metrics store with them.
 */
export class BoundedLabels {
  readonly #known = new Set<string>();

  /** The name itself, or `other` once there are too many. */
  name(name: string): string {
    if (this.#known.has(name)) return name;
    if (this.#known.size >= MAX_NAMES) return 'other';
    this.#known.add(name);
    return name;
  }
}
