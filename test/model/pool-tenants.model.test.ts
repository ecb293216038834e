import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { Lease } from '../../src/pool/lease.js';
import type { TaskContext } from '../../src/pool/options.js';
import { PipelinePool } from '../../src/pool/pipeline-pool.js';
import { seeded } from '../support/random-numbers.js';
import { sizeOf } from '../support/soak.js';
import { VirtualTime } from '../support/virtual-time.js';

const RUNS = sizeOf('schedules of a pool with tenants', 500, 20_000);

const time = new VirtualTime();
beforeAll(() => time.install());
afterAll(() => time.restore());

interface Request {
  readonly id: string;
  readonly tenant: string;
  readonly claimed: number | undefined;
  readonly controller: AbortController;
  state: 'waiting' | 'preparing' | 'held' | 'ended';
  lease: Lease<number> | undefined;
}

interface Share {
  readonly weight: number;
  readonly maxConcurrent: number;
  readonly guaranteed: number;
}

const passMs = (ms: number) => new Promise<void>((resolve) => void setTimeout(resolve, ms));

/** A pool under a random schedule, and what its host knows of it. */
class Schedule {
  readonly violations: string[] = [];
  readonly requests: Request[] = [];
  readonly pool: PipelinePool<number>;
  readonly upTo: (most: number) => number;
  readonly chance: (share: number) => boolean;
  readonly shares = new Map<string, Share>();
  /** Whether callbacks take time and fail. */
  areFaulty = true;
  isPaused = false;
  readonly #alive = new Set<number>();
  /** Grants ahead of requests of tenants below their guarantees. */
  readonly #suspicions: { readonly request: Request; readonly other: Request }[] = [];
  readonly #prepares: boolean;

  constructor(seed: number) {
    const random = seeded(seed);
    this.upTo = (most) => 1 + Math.floor(random() * most);
    this.chance = (share) => random() < share;
    for (const name of ['a', 'b', 'c', 'd']) {
      const maxConcurrent = this.chance(0.6) ? this.upTo(3) : 100;
      const guaranteed = this.chance(0.4) ? Math.min(maxConcurrent, this.upTo(2)) : 0;
      this.shares.set(name, { weight: this.upTo(3), maxConcurrent, guaranteed });
    }
    this.#prepares = this.chance(0.4);
    this.pool = new PipelinePool<number>({
      size: this.upTo(4),
      tenants: (name) => this.#shareOf(name),
      onCreateFailure: this.chance(0.5) ? 'retry' : 'reject',
      createRetry: { baseMs: 1, maxMs: 4 },
      ...(this.chance(0.3) ? { agingMs: this.upTo(20) } : {}),
      ...(this.chance(0.3) ? { maxLeaseMs: 20 + this.upTo(40) } : {}),
      ...(this.chance(0.3) ? { maxUses: this.upTo(3) } : {}),
      ...(this.chance(0.3) ? { createConcurrency: 1 } : {}),
      ...(this.chance(0.4)
        ? { validate: () => this.#validate(), validateAfterIdleMs: this.upTo(2) - 1 }
        : {}),
      ...(this.#prepares ? { prepare: (_, context) => this.#prepare(context) } : {}),
      ...(this.chance(0.3) ? { reset: () => this.#slowly() } : {}),
      create: ({ instanceId }) => this.#create(instanceId),
      destroy: (id) => void this.#alive.delete(id),
    });
  }

  ask(tenant = [...this.shares.keys()][this.upTo(4) - 1] as string): Request {
    const claimed = this.chance(0.2) ? [...this.#alive][this.upTo(4) - 1] : undefined;
    const controller = new AbortController();
    const request: Request = {
      id: `${this.requests.length}`,
      tenant,
      claimed,
      controller,
      state: 'waiting',
      lease: undefined,
    };
    this.requests.push(request);
    const options = { taskId: request.id, tenant, priority: this.upTo(3), signal: controller.signal };
    this.pool.acquire({ ...options, ...(claimed === undefined ? {} : { instanceId: claimed }) }).then(
      (lease) => this.#granted(request, lease),
      () => {
        request.state = 'ended';
      },
    );
    return request;
  }

  async step(): Promise<void> {
    const { pool } = this;
    const held = this.some('held');
    const waiting = this.some('waiting', 'preparing');
    const kind = this.upTo(20);
    if (kind <= 9) this.ask();
    else if (kind <= 14 && held !== undefined) this.release(held, this.chance(0.2));
    else if (kind === 15 && waiting !== undefined) {
      waiting.state = 'ended';
      waiting.controller.abort(new Error('aborted'));
    } else if (kind === 16) pool.resize(this.upTo(4));
    else if (kind === 17 && this.chance(0.3)) pool.refresh();
    else if (kind === 18) {
      this.isPaused = !this.isPaused;
      if (this.isPaused) pool.pause();
      else pool.resume();
    }
    await time.pass(this.chance(0.5) ? 0 : this.upTo(10));
    this.check();
  }

  release(request: Request, discard: boolean): void {
    request.state = 'ended';
    void request.lease?.release({ discard });
  }

  some(...states: Request['state'][]): Request | undefined {
    const them = this.requests.filter(({ state }) => states.includes(state));
    return them[this.upTo(Math.max(1, them.length)) - 1];
  }

  of(...states: Request['state'][]): Request[] {
    return this.requests.filter(({ state }) => states.includes(state));
  }

  /** What holds between steps: nothing stays idle that a waiter might have. */
  check(): void {
    // One that was rejected before the grant, with its creation, learns of it after the grant.
    for (const { request, other } of this.#suspicions.splice(0))
      if (other.state !== 'ended')
        this.#violated(`${request.id} of ${request.tenant} precedes ${other.id} of ${other.tenant}`);
    const { live, idle, leased, queued } = this.pool.stats();
    if (queued !== this.of('waiting', 'preparing').length) this.#violated(`${queued} queued`);
    if (this.isPaused || live !== idle + leased) return;
    for (const waiter of this.of('waiting')) {
      const isIdle = waiter.claimed === undefined ? idle > 0 : this.#isFree(waiter.claimed);
      if (isIdle && this.#heldBy(waiter.tenant) < this.#shareOf(waiter.tenant).maxConcurrent)
        this.#violated(`${waiter.id} of ${waiter.tenant} waits for an idle instance`);
    }
  }

  #shareOf(name: string): Share {
    return this.shares.get(name) as Share;
  }

  #heldBy(name: string): number {
    return this.of('held', 'preparing').filter(({ tenant }) => tenant === name).length;
  }

  #isFree(instanceId: number): boolean {
    return (
      this.#alive.has(instanceId) && !this.of('held').some(({ lease }) => lease?.instanceId === instanceId)
    );
  }

  #granted(request: Request, lease: Lease<number>): void {
    // Aborted in the step of the grant.
    if (request.state === 'ended') return void lease.release();
    if (!this.#prepares) this.#took(request, lease.instanceId);
    request.state = 'held';
    request.lease = lease;
    lease.signal.addEventListener('abort', () => {
      // `close` aborts it too: then the host still holds the lease.
      if (!lease.isHeld) request.state = 'ended';
    });
  }

  /** A request leaves the queue with this instance: within its cap, and with a claim that no waiter precedes. */
  #took(request: Request, instanceId: number): void {
    const { tenant } = request;
    const held = this.#heldBy(tenant);
    const share = this.#shareOf(tenant);
    if (held >= share.maxConcurrent) this.#violated(`${tenant} holds ${held + 1} of ${share.maxConcurrent}`);
    if (held < share.guaranteed) return;
    for (const other of this.of('waiting')) {
      if (this.#heldBy(other.tenant) >= this.#shareOf(other.tenant).guaranteed) continue;
      if (other.claimed !== undefined && other.claimed !== instanceId) continue;
      this.#suspicions.push({ request, other });
    }
  }

  async #create(instanceId: number): Promise<number> {
    await this.#slowly();
    if (this.areFaulty && this.chance(0.25)) throw new Error('create failed');
    this.#alive.add(instanceId);
    return instanceId;
  }

  async #validate(): Promise<boolean> {
    await this.#slowly();
    return !(this.areFaulty && this.chance(0.2));
  }

  async #prepare({ taskId, instanceId }: TaskContext): Promise<void> {
    const request = this.requests[Number(taskId)];
    if (request === undefined) return;
    this.#took(request, instanceId);
    request.state = 'preparing';
    await this.#slowly();
    if (!this.areFaulty || this.chance(0.8)) return;
    if (request.state === 'preparing') request.state = 'ended';
    throw new Error('prepare failed');
  }

  async #slowly(): Promise<void> {
    if (this.areFaulty && this.chance(0.6)) await passMs(this.upTo(15));
  }

  #violated(what: string): void {
    this.violations.push(`${what} at ${time.nowMs} ms`);
  }
}

/** Releases whatever is granted until no request is left. */
async function serveAll(schedule: Schedule): Promise<void> {
  for (let round = 0; round < 100 && schedule.of('waiting', 'preparing', 'held').length > 0; round++) {
    for (const one of schedule.of('held')) {
      schedule.release(one, false);
      await time.pass(0);
      schedule.check();
    }
    await time.pass(20);
  }
}

/** Whatever has happened, each tenant can have as much as its cap and the size allow, and no more. */
async function countRoom({ pool, shares }: Schedule): Promise<void> {
  pool.resize(4);
  for (const [name, { maxConcurrent }] of shares) {
    const held: Lease<number>[] = [];
    for (let i = 0; i < 4; i++) void pool.acquire({ tenant: name }).then((lease) => held.push(lease));
    // No lease is revoked within this time.
    await time.pass(20);
    expect(held, name).toHaveLength(Math.min(4, maxConcurrent));
    for (let lease = held.pop(); lease !== undefined; lease = held.pop()) {
      void lease.release();
      await time.pass(20);
    }
  }
}

async function run(seed: number): Promise<void> {
  const schedule = new Schedule(seed);
  const { pool } = schedule;
  for (let i = 0; i < 40; i++) await schedule.step();
  const ending = schedule.upTo(3);
  schedule.areFaulty = false;
  schedule.isPaused = false;
  if (ending === 1) pool.resume();
  else void (ending === 2 ? pool.drain() : pool.close());
  // What is granted in the step of a release is seen after it.
  await time.pass(0);
  await serveAll(schedule);
  expect(schedule.violations).toEqual([]);
  expect(schedule.of('waiting', 'preparing', 'held')).toEqual([]);
  expect(pool.stats()).toMatchObject({ queued: 0, leased: 0 });
  if (ending === 1) await countRoom(schedule);
  void pool.close();
  await time.pass(100);
  expect(pool.stats()).toMatchObject({ queued: 0, leased: 0, live: 0, state: 'closed' });
  time.restart();
}

describe('A pool with tenants, in random schedules', () => {
  it('exceeds no cap, honours guarantees, serves or rejects all, and loses no slot', async () => {
    for (let seed = 0; seed < RUNS; seed++) {
      await run(seed).catch((error: unknown) => {
        throw new Error(`seed ${seed}`, { cause: error });
      });
    }
  }, 300_000);
});
