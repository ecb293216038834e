/** What a pool looks like at one moment: counted, not derived. */
export interface PoolStats {
  /** The most instances the pool keeps. */
  readonly size: number;
  readonly min: number;
  /** Instances alive: the sum of the next six. */
  readonly live: number;
  readonly creating: number;
  readonly idle: number;
  /** Being validated, or prepared for a task. */
  readonly readying: number;
  readonly leased: number;
  readonly resetting: number;
  readonly destroying: number;
  /** Requests without a lease yet. */
  readonly waiting: number;
  /** Instances created, failed to be created and torn down so far. */
  readonly created: number;
  readonly createFailed: number;
  readonly destroyed: number;
  /** Leases given, given back and taken back so far. */
  readonly acquired: number;
  readonly released: number;
  readonly revoked: number;
  /** Requests turned away so far, whatever the reason. */
  readonly rejected: number;
  readonly state: 'open' | 'draining' | 'closed';
}
