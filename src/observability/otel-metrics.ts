import type { Attachment } from './attachment.js';
import { BoundedLabels } from './bounded-labels.js';
import { WAIT_BUCKETS, WORK_BUCKETS } from './second-buckets.js';

/** What is needed of an OpenTelemetry `Meter`. */
export interface MeterLike {
  createHistogram(name: string, options?: object): object;
  createCounter(name: string, options?: object): object;
  createUpDownCounter(name: string, options?: object): object;
}

type Attributes = Readonly<Record<string, string>>;
interface Histogram {
  record(value: number, attributes: Attributes): void;
}
interface Adder {
  add(value: number, attributes: Attributes): void;
}
interface PoolFigures {
  readonly source: string;
  readonly size: number;
  readonly live: number;
  readonly leased: number;
  readonly waiting: number;
}

const POOL = 'pipeline_pool.pool.name';
const LIMITER = 'pipeline_pool.limiter.name';
const GATE = 'pipeline_pool.gate.name';
const OUTCOME = 'pipeline_pool.outcome';
const REASON = 'pipeline_pool.reason';
const STATE = 'pipeline_pool.instance.state';

/**
 * Measures what the hooks tell. Tools have a convention, `gen_ai.execute_tool.duration`; pools have one only for
 * database connections, whose shape and words (`wait_time`, `use_time`, `create_time`, `pending_requests`, `count`, `max`)
 * are kept under a name of our own. Durations are seconds, as the conventions have it.
 */
export function measureWith(meter: MeterLike, attachment: Attachment): void {
  const instruments = new Instruments(meter);
  measureRequests(instruments, attachment);
  measurePools(instruments, attachment);
  measureGates(instruments, attachment);
  measureTools(instruments, attachment);
}

class Instruments {
  readonly #meter: MeterLike;

  constructor(meter: MeterLike) {
    this.#meter = meter;
  }

  /** Takes milliseconds. */
  time(
    name: string,
    description: string,
    buckets: readonly number[],
  ): (ms: number, attributes: Attributes) => void {
    const options = { description, unit: 's', advice: { explicitBucketBoundaries: [...buckets] } };
    const histogram = this.#meter.createHistogram(name, options) as Histogram;
    return (ms, attributes) => histogram.record(ms / 1_000, attributes);
  }

  count(name: string, unit: string, description: string): (attributes: Attributes) => void {
    const counter = this.#meter.createCounter(name, { description, unit }) as Adder;
    return (attributes) => counter.add(1, attributes);
  }

  /** A number that goes up and down, of which events tell the value. */
  level(name: string, unit: string, description: string): (value: number, attributes: Attributes) => void {
    const counter = this.#meter.createUpDownCounter(name, { description, unit }) as Adder;
    const values = new Map<string, number>();
    return (value, attributes) => {
      const key = Object.values(attributes).join('\n');
      const change = value - (values.get(key) ?? 0);
      values.set(key, value);
      if (change !== 0) counter.add(change, attributes);
    };
  }
}

function measureRequests(instruments: Instruments, attachment: Attachment): void {
  const duration = instruments.time(
    'pipeline_pool.request.duration',
    'How long the code of requests ran',
    WORK_BUCKETS,
  );
  const wait = instruments.time(
    'pipeline_pool.request.wait_time',
    'Waits before requests began',
    WAIT_BUCKETS,
  );
  const rejected = instruments.count(
    'pipeline_pool.request.rejections',
    '{request}',
    'Requests that never began',
  );
  const active = instruments.level('pipeline_pool.request.active', '{request}', 'Requests whose code runs');
  const admission = instruments.time('pipeline_pool.permit.wait_time', 'Waits for a permit', WAIT_BUCKETS);
  const refused = instruments.count('pipeline_pool.permit.rejections', '{request}', 'Requests turned away');
  const limiters = new BoundedLabels();
  // By id, so that a request which began before the measuring does not make the number negative.
  const running = new Set<string>();
  attachment
    .on('request:started', ({ requestId, queuedMs }) => {
      running.add(requestId);
      active(running.size, {});
      wait(queuedMs, {});
    })
    .on('request:finished', ({ requestId, outcome, durationMs }) => {
      running.delete(requestId);
      active(running.size, {});
      duration(durationMs, { [OUTCOME]: outcome, ...errorType(outcome) });
    })
    .on('request:rejected', ({ outcome }) => rejected({ [OUTCOME]: outcome, ...errorType(outcome) }))
    .on('permit:acquired', (p) => admission(p.waitMs, { [LIMITER]: limiters.name(p.source) }))
    .on('permit:rejected', (p) => refused({ [LIMITER]: limiters.name(p.source), [REASON]: p.reason }));
}

function measurePools(instruments: Instruments, attachment: Attachment): void {
  const wait = instruments.time('pipeline_pool.lease.wait_time', 'Waits for an instance', WAIT_BUCKETS);
  const use = instruments.time(
    'pipeline_pool.lease.use_time',
    'How long instances were leased',
    WORK_BUCKETS,
  );
  const pending = instruments.level(
    'pipeline_pool.lease.pending_requests',
    '{request}',
    'Requests that wait now',
  );
  const refused = instruments.count('pipeline_pool.lease.rejections', '{request}', 'Requests turned away');
  const revoked = instruments.count('pipeline_pool.lease.revocations', '{lease}', 'Leases taken back');
  const leaked = instruments.count(
    'pipeline_pool.lease.leaks',
    '{lease}',
    'Leases that look leaked or were dropped',
  );
  const create = instruments.time(
    'pipeline_pool.instance.create_time',
    'How long creation took',
    WORK_BUCKETS,
  );
  const failed = instruments.count(
    'pipeline_pool.instance.create_failures',
    '{failure}',
    'Creations that failed',
  );
  const destroyed = instruments.count(
    'pipeline_pool.instance.destroyed',
    '{instance}',
    'Instances torn down',
  );
  const instances = instruments.level(
    'pipeline_pool.instance.count',
    '{instance}',
    'Instances alive, by state',
  );
  const max = instruments.level(
    'pipeline_pool.instance.max',
    '{instance}',
    'The most instances the pool keeps',
  );
  const pools = new BoundedLabels();
  const told = ({ source, size, live, leased, waiting }: PoolFigures): Attributes => {
    const attributes = { [POOL]: pools.name(source) };
    instances(leased, { ...attributes, [STATE]: 'used' });
    instances(live - leased, { ...attributes, [STATE]: 'unused' });
    max(size, attributes);
    pending(waiting, attributes);
    return attributes;
  };
  attachment
    .on('lease:queued', (p) => void told(p))
    .on('lease:acquired', (p) => wait(p.waitMs, told(p)))
    .on('lease:released', (p) => use(p.heldMs, told(p)))
    .on('lease:rejected', (p) => refused({ ...told(p), [REASON]: p.reason }))
    .on('lease:revoked', (p) => revoked({ ...told(p), [REASON]: p.reason }))
    .on('lease:leaked', (p) => {
      if (p.kind !== 'returned') leaked({ ...told(p), [REASON]: p.kind });
    })
    .on('instance:creating', (p) => void told(p))
    .on('instance:created', (p) => create(p.createMs, told(p)))
    .on('instance:createFailed', (p) => failed(told(p)))
    .on('instance:destroyed', (p) => destroyed({ ...told(p), [REASON]: p.reason }))
    .on('instance:destroyFailed', (p) => void told(p));
}

function measureGates(instruments: Instruments, attachment: Attachment): void {
  const duration = instruments.time(
    'pipeline_pool.call.duration',
    'How long calls took, waits included',
    WORK_BUCKETS,
  );
  const wait = instruments.time(
    'pipeline_pool.call.wait_time',
    'How long calls waited at their gate',
    WAIT_BUCKETS,
  );
  const retries = instruments.count(
    'pipeline_pool.call.retries',
    '{attempt}',
    'Attempts followed by another',
  );
  const throttles = instruments.count(
    'pipeline_pool.call.throttles',
    '{call}',
    'Times that calls were held up',
  );
  const lookups = instruments.count('pipeline_pool.cache.lookups', '{lookup}', 'Calls that asked the cache');
  const quarantines = instruments.count('pipeline_pool.key.quarantines', '{key}', 'Keys put in quarantine');
  const gates = new BoundedLabels();
  const gate = ({ source }: { readonly source: string }): Attributes => ({ [GATE]: gates.name(source) });
  attachment
    .on('call:finished', (p) => {
      duration(p.durationMs, { ...gate(p), [OUTCOME]: p.outcome, ...errorType(p.outcome) });
      wait(p.waitMs, gate(p));
    })
    .on('call:retried', (p) => retries({ ...gate(p), [OUTCOME]: p.class }))
    .on('call:throttled', (p) => throttles({ ...gate(p), [REASON]: p.reason }))
    .on('cache:hit', (p) => lookups({ ...gate(p), 'pipeline_pool.cache': p.shared ? 'shared' : 'hit' }))
    .on('cache:miss', (p) => lookups({ ...gate(p), 'pipeline_pool.cache': 'miss' }))
    .on('key:quarantined', (p) => quarantines({ ...gate(p), [REASON]: p.reason }));
}

function measureTools(instruments: Instruments, attachment: Attachment): void {
  const duration = instruments.time('gen_ai.execute_tool.duration', 'How long tool calls took', WORK_BUCKETS);
  const faults = instruments.count('pipeline_pool.hook.errors', '{error}', 'Failures of listeners');
  const tools = new BoundedLabels();
  attachment
    .on('tool:finished', ({ tool, outcome, durationMs }) =>
      duration(durationMs, {
        'gen_ai.operation.name': 'execute_tool',
        'gen_ai.tool.name': tools.name(tool),
        ...errorType(outcome),
      }),
    )
    .on('hook:error', ({ event }) => faults({ 'pipeline_pool.event': event }));
}

const errorType = (outcome: string): Attributes => (outcome === 'ok' ? {} : { 'error.type': outcome });
