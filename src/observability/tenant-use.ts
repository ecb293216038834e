import type { Attachment } from '../hooks/attachment.js';
import { nowMs } from '../internal/clock.js';
import type { RequestInfo } from '../manager/request.js';

/** What the requests of one tenant do, and have done since the recording began. */
export interface TenantFigures {
  running: number;
  queued: number;
  /** Requests that began. */
  started: number;
  /** Time for which its requests ran; those that run now count by the part that has passed. */
  runMs: number;
  /** Time for which they waited before. */
  waitMs: number;
  /** What their calls spent of budgets, by meter. */
  readonly spent: Map<string, number>;
}

interface Tenant {
  running: number;
  queued: number;
  /** How long its requests ran and waited lately, by which it is shown or not: one that only waits is seen, too. */
  use: number;
  /** Its own figures while it is shown, else those of `other`. */
  figures: TenantFigures;
}

interface Current {
  readonly tenant: Tenant;
  sinceMs: number;
  isRunning: boolean;
}

/** The name of all tenants that are not shown. */
export const OTHER_TENANTS = 'other';
/** For each tenant that is shown, so many are followed; further ones are counted together. */
const FOLLOWED = 10;
/** After so many ends, earlier use counts half. */
const ENDS_PER_HALVING = 1_000;
const MAX_METERS = 100;

const noFigures = (): TenantFigures => ({
  running: 0,
  queued: 0,
  started: 0,
  runMs: 0,
  waitMs: 0,
  spent: new Map(),
});

/**
 * The use of a service by tenant: the `most` whose requests take longest by name, all others together.
 *
 * Invariants:
 * - No figure of a name ever falls, but for `running` and `queued`: what a tenant does is added to its name while it is
 *   shown, and to `other` otherwise. One that is shown again goes on where it was.
 * - At most `FOLLOWED` × `most` names are ever shown, and as many tenants followed at a time.
 * - Nothing is kept of a request without a tenant.
 */
export class TenantUse {
  readonly #most: number;
  readonly #tenants = new Map<string, Tenant>();
  readonly #shown = new Map<string, Tenant>();
  readonly #everShown = new Map<string, TenantFigures>();
  readonly #other: Tenant = { running: 0, queued: 0, use: 0, figures: noFigures() };
  readonly #requests = new Map<string, Current>();
  readonly #meters = new Set<string>();
  #ends = 0;

  constructor(most: number) {
    this.#most = most;
  }

  /** `source`: the manager whose requests count; all, if it is left out. `current`: those that came before. */
  listen(attachment: Attachment, source?: string, current: readonly RequestInfo[] = []): void {
    for (const { requestId, tenant, state } of current)
      if (tenant !== undefined) this.#add(requestId, tenant, state === 'running');
    const isCounted = (p: { readonly source: string; readonly tenant?: string }): boolean =>
      p.tenant !== undefined && (source === undefined || p.source === source);
    attachment
      .on('request:queued', (p) => {
        if (isCounted(p)) this.#add(p.requestId, p.tenant as string, false);
      })
      .on('request:started', (p) => {
        if (!isCounted(p)) return;
        const current = this.#requests.get(p.requestId) ?? this.#add(p.requestId, p.tenant as string, false);
        this.#settle(current);
        this.#begin(current);
      })
      .on('request:finished', (p) => this.#end(p.requestId, p.tenant))
      .on('request:rejected', (p) => this.#end(p.requestId, p.tenant));
  }

  /** What calls spend of budgets. */
  listenToCosts(attachment: Attachment): void {
    attachment.on('call:finished', ({ tenant, cost }) => {
      if (tenant === undefined || cost === undefined) return;
      const { spent } = this.#of(tenant).figures;
      for (const [meter, amount] of Object.entries(cost)) {
        const name = this.#meters.has(meter) || this.#meters.size < MAX_METERS ? meter : OTHER_TENANTS;
        this.#meters.add(name);
        spent.set(name, (spent.get(name) ?? 0) + amount);
      }
    });
  }

  /** The figures by name, of all tenants that were named; `other` last. */
  figures(): ReadonlyMap<string, TenantFigures> {
    for (const current of this.#requests.values()) this.#settle(current);
    this.#promote(this.#tenants);
    const all = new Map<string, TenantFigures>();
    const other = this.#other.figures;
    other.running = this.#other.running;
    other.queued = this.#other.queued;
    for (const [name, { running, queued, figures }] of this.#tenants) {
      if (figures === other) {
        other.running += running;
        other.queued += queued;
      } else all.set(name, Object.assign(figures, { running, queued }));
    }
    const { running, queued, started, waitMs, spent } = other;
    if (this.#tenants.size > this.#shown.size || running + queued + started + waitMs + spent.size > 0)
      all.set(OTHER_TENANTS, other);
    return all;
  }

  #add(requestId: string, tenant: string, isRunning: boolean): Current {
    const current = { tenant: this.#of(tenant), sinceMs: nowMs(), isRunning: false };
    this.#requests.set(requestId, current);
    current.tenant.queued++;
    if (isRunning) this.#begin(current);
    return current;
  }

  #begin(current: Current): void {
    current.isRunning = true;
    current.tenant.queued--;
    current.tenant.running++;
    current.tenant.figures.started++;
  }

  /** Adds the time that has passed. */
  #settle(current: Current): void {
    const now = nowMs();
    const ms = now - current.sinceMs;
    current.sinceMs = now;
    const { tenant, isRunning } = current;
    tenant.figures[isRunning ? 'runMs' : 'waitMs'] += ms;
    tenant.use += ms;
  }

  #end(requestId: string, name: string | undefined): void {
    const current = this.#requests.get(requestId);
    if (current === undefined) return;
    this.#requests.delete(requestId);
    this.#settle(current);
    const { tenant } = current;
    if (current.isRunning) tenant.running--;
    else tenant.queued--;
    if (++this.#ends % ENDS_PER_HALVING === 0) for (const each of this.#tenants.values()) each.use /= 2;
    if (name !== undefined && tenant !== this.#other) this.#promote([[name, tenant]]);
  }

  #of(name: string): Tenant {
    // A tenant of that name is counted with the others.
    if (name === OTHER_TENANTS) return this.#other;
    let tenant = this.#tenants.get(name);
    if (tenant !== undefined) return tenant;
    if (this.#tenants.size >= FOLLOWED * this.#most && !this.#drop()) return this.#other;
    tenant = { running: 0, queued: 0, use: 0, figures: this.#other.figures };
    this.#tenants.set(name, tenant);
    if (this.#shown.size < this.#most) this.#show(name, tenant);
    return tenant;
  }

  /** Shows those of the tenants that use more than twice as much as one that is shown, in place of it. */
  #promote(tenants: Iterable<readonly [string, Tenant]>): void {
    let least: readonly [string, Tenant] | undefined;
    for (const [name, tenant] of tenants) {
      if (this.#shown.has(name)) continue;
      least ??= leastOf(this.#shown);
      if (least === undefined || tenant.use <= 2 * least[1].use) continue;
      if (!this.#everShown.has(name) && this.#everShown.size >= FOLLOWED * this.#most) continue;
      least[1].figures = this.#other.figures;
      this.#shown.delete(least[0]);
      this.#show(name, tenant);
      least = undefined;
    }
  }

  #show(name: string, tenant: Tenant): void {
    tenant.figures = this.#everShown.get(name) ?? noFigures();
    this.#shown.set(name, tenant);
    this.#everShown.set(name, tenant.figures);
  }

  /** Forgets the tenant that used least, of those that do nothing and are not shown. */
  #drop(): boolean {
    const idle = [...this.#tenants].filter(
      ([name, { running, queued }]) => running + queued === 0 && !this.#shown.has(name),
    );
    const least = leastOf(idle);
    return least !== undefined && this.#tenants.delete(least[0]);
  }
}

function leastOf(tenants: Iterable<readonly [string, Tenant]>): readonly [string, Tenant] | undefined {
  let least: readonly [string, Tenant] | undefined;
  for (const each of tenants) if (least === undefined || each[1].use < least[1].use) least = each;
  return least;
}
