import type { InstanceContext, PipelinePoolOptions } from '../../src/pool/options.js';
import { type Deferred, deferred } from './promises.js';

/** What the tests pool: knows its own life, so that a test can see who had it and when. */
export interface Piece {
  readonly id: number;
  alive: boolean;
  /** Tasks it was prepared for and not yet reset from. */
  readonly tasks: (string | undefined)[];
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
