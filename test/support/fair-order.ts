interface Waiting {
  readonly priority: number;
  readonly tenant: string | undefined;
}

/**
 * The order of waiters with `fairBy: 'requests'`, in plain code: priority, then the tenant with the fewest grants, then the
 * one whose turn was longest ago.
 */
export class FairOrder {
  /** Whether a tenant was named: from then on grants are counted. */
  isShared = false;
  readonly #received = new Map<string | undefined, number>();
  readonly #turns = new Map<string | undefined, number>();
  /** What the tenant of the last grant had received, of all grants and of those of each priority. */
  #virtual = 0;
  readonly #virtualOf = new Map<number, number>();
  #lastTurn = 0;

  clone(): FairOrder {
    const copy = new FairOrder();
    copy.isShared = this.isShared;
    for (const [tenant, received] of this.#received) copy.#received.set(tenant, received);
    for (const [tenant, turn] of this.#turns) copy.#turns.set(tenant, turn);
    for (const [priority, virtual] of this.#virtualOf) copy.#virtualOf.set(priority, virtual);
    copy.#virtual = this.#virtual;
    copy.#lastTurn = this.#lastTurn;
    return copy;
  }

  next<W extends Waiting>(waiting: readonly W[]): W | undefined {
    const priority = Math.max(...waiting.map((one) => one.priority));
    return waiting
      .filter((one) => one.priority === priority)
      .sort(
        (a, b) =>
          this.#of(a.tenant) - this.#of(b.tenant) ||
          (this.#turns.get(a.tenant) ?? 0) - (this.#turns.get(b.tenant) ?? 0),
      )[0];
  }

  /** One more is about to wait. A tenant that begins to has no credit for the time in which it did not. */
  join({ priority, tenant }: Waiting, waiting: readonly Waiting[]): void {
    if (!waiting.some((one) => one.priority === priority)) this.#virtualOf.set(priority, this.#virtual);
    if (waiting.some((one) => one.tenant === tenant)) return;
    const next = this.next(waiting);
    const virtual = this.#virtualOf.get(priority) as number;
    const present = next?.priority === priority ? Math.min(virtual, this.#of(next.tenant)) : virtual;
    this.#received.set(tenant, Math.max(this.#of(tenant), present));
    this.#turns.set(tenant, ++this.#lastTurn);
  }

  /** A waiter is granted. */
  grant({ priority, tenant }: Waiting): void {
    if (!this.isShared) return;
    this.#virtualOf.set(priority, this.#of(tenant));
    this.#charge(tenant);
  }

  /** A request that did not wait is granted. */
  grantFree(tenant: string | undefined, waiting: readonly Waiting[]): void {
    if (!this.isShared) return;
    if (!waiting.some((one) => one.tenant === tenant))
      this.#received.set(tenant, Math.max(this.#of(tenant), this.#virtual));
    this.#charge(tenant);
  }

  #of(tenant: string | undefined): number {
    return this.#received.get(tenant) ?? 0;
  }

  #charge(tenant: string | undefined): void {
    this.#virtual = this.#of(tenant);
    this.#received.set(tenant, this.#virtual + 1);
    this.#turns.set(tenant, ++this.#lastTurn);
  }
}
