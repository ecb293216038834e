/** The options of `release`. */
export interface ReleaseOptions {
  /** Destroys the instance instead of keeping it for the next task, because it is broken or not trusted. @default false */
  readonly discard?: boolean | undefined;
}

/**
 * One holder's time-limited, revocable right to one instance, granted by `PipelinePool.acquire`.
 *
 * Each lease is a separate token: releasing it twice, late, or after revocation does not affect the current holder of the
 * instance.
 *
 * @example
 * await using lease = await pool.acquire({ taskId, signal });
 * const answer = await lease.pipeline.research(question, { signal: lease.signal });
 */
export interface Lease<T> extends AsyncDisposable {
  /**
   * The instance, for this holder alone until the release or a revocation.
   *
   * @throws {LeaseReleasedError} after `release`
   * @throws {LeaseRevokedError} after the lease was revoked
   */
  readonly pipeline: T;

  /** Starts at 1 in each pool and is never reused. */
  readonly instanceId: number;

  /** The `taskId` passed to `acquire`. */
  readonly taskId: string | undefined;

  /** Milliseconds that the request waited, accurate to one turn of the event loop. */
  readonly waitMs: number;

  /**
   * Aborts when the lease is revoked (`LeaseRevokedError`) or the pool is closed (`PoolClosedError`; the holder then keeps
   * the instance until the deadline of `close`), and when a manager's permit for it is lost (`LimitLostError`; the holder
   * then keeps it for `abortGraceMs`). `release` does not abort it.
   */
  readonly signal: AbortSignal;

  /** @internal `signal` for code that only uses `watchAbort`; costs no AbortController. */
  readonly watchable: AbortSignal;

  /** @internal Aborts `signal` without ending the lease. */
  abort(reason: unknown): void;

  /** Settles when the lease has ended for any reason and the instance is back or gone. Never rejects. */
  readonly ended: Promise<void>;

  /** Whether the lease is neither released nor revoked. */
  readonly isHeld: boolean;

  /**
   * Returns the instance. The promise never rejects; it settles when the instance is ready for the next task, or gone. A
   * second call, or a call after revocation, does nothing.
   *
   * @throws {TypeError} naming an invalid option; the lease ends all the same, and the instance is discarded
   */
  release(options?: ReleaseOptions): Promise<void>;
}
