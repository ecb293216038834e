/** How a lease is given back. */
export interface ReleaseOptions {
  /** Tears the instance down instead of keeping it for the next task: it is broken, or not to be trusted. @default false */
  readonly discard?: boolean;
}

/**
 * One holder's right to one instance, until it is released or taken back. Leases come from `PipelinePool.acquire`.
 *
 * A token of its own: released twice, late, or after it was taken back, it changes nothing for whoever holds the
 * instance by then.
 *
 * @example
 * await using lease = await pool.acquire({ taskId, signal });
 * const answer = await lease.pipeline.research(question, { signal: lease.signal });
 */
export interface Lease<T> extends AsyncDisposable {
  /**
   * The instance.
   *
   * @throws {LeaseReleasedError} after `release`
   * @throws {LeaseRevokedError} after the lease was taken back
   */
  readonly pipeline: T;

  /** Counts from 1 in each pool, and is never used again. */
  readonly instanceId: number;

  /** As it was given to `acquire`. */
  readonly taskId: string | undefined;

  /** Milliseconds waited for it, exact to one turn of the event loop. */
  readonly waitMs: number;

  /**
   * Aborts when the lease is taken back (`LeaseRevokedError`) or the pool is closed (`PoolClosedError`; the instance is
   * then still the holder's until the deadline of `close`). Not aborted by `release`.
   */
  readonly signal: AbortSignal;

  /** Settles when the lease has ended, however it did, and the instance is back or gone. Never rejects. */
  readonly ended: Promise<void>;

  /** Whether the lease still stands: neither released nor taken back. */
  readonly isHeld: boolean;

  /**
   * Gives the instance back. Never rejects; settles when the instance is ready for the next task, or gone. Again, or
   * after the lease was taken back, it changes nothing.
   *
   * @throws {TypeError} naming a wrong option; the lease is over all the same, and the instance discarded
   */
  release(options?: ReleaseOptions): Promise<void>;
}
