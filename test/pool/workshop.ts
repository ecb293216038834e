import { afterEach, beforeEach, vi } from 'vitest';
import type { InstanceContext, PipelinePoolOptions } from '../../src/pool/pool-options.js';

/** What the tests pool: knows its own life, so that a test can see who had it and when. */
export interface Piece {
  readonly id: number;
  alive: boolean;
  /** Tasks it was prepared for and not yet reset from. */
  readonly tasks: (string | undefined)[];
}

export interface Deferred<V> {
  readonly promise: Promise<V>;
  resolve(value: V): void;
  reject(error: unknown): void;
}

export function deferred<V = void>(): Deferred<V> {
  let resolve!: (value: V) => void;
  let reject!: (error: unknown) => void;
  const promise = new Promise<V>((yes, no) => {
    resolve = yes;
    reject = no;
  });
  return { promise, resolve, reject };
}

/** Makes pieces, and counts how many were alive at once. */
export class Workshop {
  readonly pieces: Piece[] = [];
  readonly destroyed: number[] = [];
  alive = 0;
  peak = 0;

  readonly create = ({ instanceId }: InstanceContext): Piece => {
    this.alive++;
    this.peak = Math.max(this.peak, this.alive);
    const piece: Piece = { id: instanceId, alive: true, tasks: [] };
    this.pieces.push(piece);
    return piece;
  };

  readonly destroy = (piece: Piece): void => {
    if (!piece.alive) throw new Error(`piece ${piece.id} was destroyed twice`);
    piece.alive = false;
    this.alive--;
    this.destroyed.push(piece.id);
  };

  /** The callbacks of a pool. */
  get callbacks(): Pick<PipelinePoolOptions<Piece>, 'create' | 'destroy'> {
    return { create: this.create, destroy: this.destroy };
  }
}

/** Creations that the test finishes by hand, in any order. */
export class HandMade extends Workshop {
  readonly orders: { readonly context: InstanceContext; readonly result: Deferred<Piece> }[] = [];

  readonly order = (context: InstanceContext): Promise<Piece> => {
    const result = deferred<Piece>();
    this.orders.push({ context, result });
    return result.promise;
  };

  /** Finishes a creation, the oldest by default. */
  finish(index = 0): void {
    const [order] = this.orders.splice(index, 1);
    if (order === undefined) throw new Error('nothing is being created');
    order.result.resolve(this.create(order.context));
  }

  fail(error: unknown, index = 0): void {
    const [order] = this.orders.splice(index, 1);
    if (order === undefined) throw new Error('nothing is being created');
    order.result.reject(error);
  }

  override get callbacks(): Pick<PipelinePoolOptions<Piece>, 'create' | 'destroy'> {
    return { create: this.order, destroy: this.destroy };
  }
}

/** Runs each test of a file in virtual time. */
export function inVirtualTime(): void {
  beforeEach(async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] });
    // The clock is read once a turn: this one may have been read already.
    await settled();
  });
  afterEach(() => {
    vi.useRealTimers();
  });
}

/** Lets everything happen that needs no timer. */
export const settled = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** What a promise has come to by now. */
export async function outcome<V>(
  promise: Promise<V>,
): Promise<'pending' | { value: V } | { error: unknown }> {
  await settled();
  return Promise.race([
    promise.then(
      (value) => ({ value }),
      (error: unknown) => ({ error }),
    ),
    Promise.resolve('pending' as const),
  ]);
}
