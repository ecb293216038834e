import type { Attachment } from '../../hooks/attachment.js';
import { readError } from '../../internal/redaction.js';
import { TenantUse } from '../tenant-use.js';
import { BoundedLabels, WAIT_BUCKETS, WORK_BUCKETS } from './prometheus-metrics.js';
import { BUDGET_STATES, budgetFigures, fleetFigures, type MetricsSources } from './sources.js';

/** From 0.01 doubling to 81.92 by the GenAI conventions; beyond that our own, since a tool may run for an hour. In seconds. */
const GEN_AI_BUCKETS = Array.from({ length: 20 }, (_, i) => 2 ** i / 100);

/** By the GenAI conventions. */
const TOKEN_BUCKETS = Array.from({ length: 14 }, (_, i) => 4 ** i);

/** The methods of an OpenTelemetry `Meter` that `traceTo` calls. */
export interface MeterLike {
  createHistogram(name: string, options?: object): object;
  createCounter(name: string, options?: object): object;
  createObservableUpDownCounter(name: string, options?: object): object;
  createObservableGauge(name: string, options?: object): object;
  createObservableCounter(name: string, options?: object): object;
}

type Attributes = Readonly<Record<string, string>>;
interface Histogram {
  record(value: number, attributes: Attributes): void;
}
interface Counter {
  add(value: number, attributes: Attributes): void;
}
type Observe = (value: number, attributes: Attributes) => void;
type ObservableCallback = (result: { observe: Observe }) => void;
interface Observable {
  addCallback(callback: ObservableCallback): void;
  removeCallback(callback: ObservableCallback): void;
}

interface PoolFigures {
  readonly source: string;
  readonly size: number;
  readonly live: number;
  readonly leased: number;
  readonly queued: number;
}

const POOL = 'pipeline_pool.pool.name';
const LIMITER = 'pipeline_pool.limiter.name';
const TENANT = 'pipeline_pool.tenant';
const LIMIT = 'pipeline_pool.limit.name';
const GATE = 'pipeline_pool.gate.name';
const OUTCOME = 'pipeline_pool.outcome';
const REASON = 'pipeline_pool.reason';
const STATE = 'pipeline_pool.instance.state';
const METER = 'pipeline_pool.meter';
const BUDGET_STATE = 'pipeline_pool.budget.state';

/**
 * Records lifecycle events as OpenTelemetry metrics. Tool calls and calls of models follow the semantic conventions
 * (`gen_ai.execute_tool.duration`, `gen_ai.client.operation.duration`, `gen_ai.client.token.usage`). For pools only database connections have one; its shape and terms (`wait_time`,
 * `use_time`, `create_time`, `pending_requests`, `count`, `max`) are kept in our own namespace. Durations are in seconds.
 *
 * @returns a function that removes the observable instruments' callbacks
 */
export function recordMetrics(
  meter: MeterLike,
  attachment: Attachment,
  sources: readonly MetricsSources[],
  tenants: number,
): () => void {
  const instruments = new Instruments(meter);
  recordRequests(instruments, attachment);
  recordPools(instruments, attachment);
  recordGates(instruments, attachment);
  recordTools(instruments, attachment);
  recordModels(instruments, attachment);
  recordFleet(instruments, sources);
  recordBudgets(instruments, sources);
  if (tenants > 0) recordTenants(instruments, attachment, tenants);
  return () => instruments.stop();
}

/** The value of `error.type` in spans and metrics: the error's code, else its class, else the outcome. */
export function errorType(error: unknown, outcome: string): string {
  if (error === undefined) return outcome;
  const { code, name } = readError(error);
  if (typeof code === 'string') return code;
  return name === 'Error' ? outcome : name;
}

/** Whether an operation failed. An abort is the caller's decision, not an error. */
export const isFailure = (outcome: string): boolean => outcome !== 'ok' && outcome !== 'aborted';

/** What a call of a model is by the GenAI conventions. */
export const modelCall = (provider: string): Attributes => ({
  'gen_ai.operation.name': provider.startsWith('gcp.') ? 'generate_content' : 'chat',
  'gen_ai.provider.name': provider,
});

/** Tool calls and those of models have a name by convention; all other instruments are in our own namespace. */
const full = (name: string): string => (name.startsWith('gen_ai.') ? name : `pipeline_pool.${name}`);

class Instruments {
  readonly #meter: MeterLike;
  readonly #errorTypes = new BoundedLabels();
  readonly #callbacks: (() => void)[] = [];

  constructor(meter: MeterLike) {
    this.#meter = meter;
  }

  /** Takes milliseconds, records seconds. */
  time(name: string, description: string, buckets: readonly number[]): Observe {
    const options = { description, unit: 's', advice: { explicitBucketBoundaries: [...buckets] } };
    const histogram = this.#meter.createHistogram(full(name), options) as Histogram;
    return (ms, attributes) => histogram.record(ms / 1_000, attributes);
  }

  tokens(name: string, description: string): Observe {
    const options = {
      description,
      unit: '{token}',
      advice: { explicitBucketBoundaries: [...TOKEN_BUCKETS] },
    };
    const histogram = this.#meter.createHistogram(name, options) as Histogram;
    return (value, attributes) => histogram.record(value, attributes);
  }

  count(name: string, unit: string, description: string): (attributes: Attributes, by?: number) => void {
    const counter = this.#meter.createCounter(full(name), { description, unit }) as Counter;
    return (attributes, by = 1) => counter.add(by, attributes);
  }

  /** An up-down counter, or what `kind` says, that is read at each collection. */
  level(
    name: string,
    unit: string,
    description: string,
    read: (observe: Observe) => void,
    kind: 'UpDownCounter' | 'Gauge' | 'Counter' = 'UpDownCounter',
  ): void {
    const options = { description, unit };
    const counter = this.#meter[`createObservable${kind}`](full(name), options) as Observable;
    const callback: ObservableCallback = (result) =>
      read((value, attributes) => result.observe(value, attributes));
    counter.addCallback(callback);
    this.#callbacks.push(() => counter.removeCallback(callback));
  }

  failure({ outcome, error }: { readonly outcome: string; readonly error?: unknown }): Attributes {
    return isFailure(outcome) ? { 'error.type': this.#errorTypes.name(errorType(error, outcome)) } : {};
  }

  stop(): void {
    for (const remove of this.#callbacks.splice(0)) remove();
  }
}

function recordRequests(instruments: Instruments, attachment: Attachment): void {
  const duration = instruments.time('request.duration', 'Run time of requests', WORK_BUCKETS);
  const wait = instruments.time('request.wait_time', 'Wait before the start', WAIT_BUCKETS);
  const rejected = instruments.count('request.rejections', '{request}', 'Requests that did not start');
  const admission = instruments.time('permit.wait_time', 'Wait for a permit', WAIT_BUCKETS);
  const notAdmitted = instruments.count('permit.rejections', '{request}', 'Rejected requests');
  const limiters = new BoundedLabels();
  // By id, so that a request which started before the recording cannot make the number negative.
  const running = new Set<string>();
  instruments.level('request.active', '{request}', 'Running requests', (observe) =>
    observe(running.size, {}),
  );
  attachment
    .on('request:started', ({ requestId, waitMs }) => {
      running.add(requestId);
      wait(waitMs, {});
    })
    .on('request:finished', (p) => {
      running.delete(p.requestId);
      duration(p.durationMs, { [OUTCOME]: p.outcome, ...instruments.failure(p) });
    })
    .on('request:rejected', (p) => rejected({ [OUTCOME]: p.outcome, ...instruments.failure(p) }))
    .on('permit:acquired', (p) => admission(p.waitMs, { [LIMITER]: limiters.name(p.source) }))
    .on('permit:rejected', (p) => notAdmitted({ [LIMITER]: limiters.name(p.source), [REASON]: p.reason }));
}

function recordPools(instruments: Instruments, attachment: Attachment): void {
  const wait = instruments.time('lease.wait_time', 'Wait for an instance', WAIT_BUCKETS);
  const use = instruments.time('lease.use_time', 'Time that instances were leased', WORK_BUCKETS);
  const create = instruments.time('instance.create_time', 'Creation time', WORK_BUCKETS);
  const rejected = instruments.count('lease.rejections', '{request}', 'Rejected requests');
  const revoked = instruments.count('lease.revocations', '{lease}', 'Revoked leases');
  const leaked = instruments.count('lease.leaks', '{lease}', 'Leases that may be leaked');
  const failed = instruments.count('instance.create_failures', '{failure}', 'Failed creations');
  const destroyed = instruments.count('instance.destroyed', '{instance}', 'Destroyed instances');

  const pools = new BoundedLabels();
  /** By name, the figures of the last event. */
  const figures = new Map<string, PoolFigures>();
  const label = (p: PoolFigures): Attributes => {
    const name = pools.name(p.source);
    figures.set(name, p);
    return { [POOL]: name };
  };
  const level = (
    name: string,
    unit: string,
    description: string,
    read: (observe: Observe, pool: PoolFigures, attributes: Attributes) => void,
  ): void =>
    instruments.level(name, unit, description, (observe) => {
      for (const [pool, values] of figures) read(observe, values, { [POOL]: pool });
    });
  level('instance.count', '{instance}', 'Live instances, by state', (observe, p, attributes) => {
    observe(p.leased, { ...attributes, [STATE]: 'used' });
    observe(p.live - p.leased, { ...attributes, [STATE]: 'idle' });
  });
  level('instance.max', '{instance}', 'Maximum instances', (observe, p, attributes) =>
    observe(p.size, attributes),
  );
  level('lease.pending_requests', '{request}', 'Queued requests', (observe, p, attributes) =>
    observe(p.queued, attributes),
  );

  attachment
    .on('lease:queued', label)
    .on('lease:acquired', (p) => wait(p.waitMs, label(p)))
    .on('lease:released', (p) => use(p.heldMs, label(p)))
    .on('lease:rejected', (p) => rejected({ [REASON]: p.reason, ...label(p) }))
    .on('lease:revoked', (p) => revoked({ [REASON]: p.reason, ...label(p) }))
    .on('lease:leaked', (p) => {
      if (p.kind !== 'returned') leaked({ [REASON]: p.kind, ...label(p) });
    })
    .on('instance:creating', label)
    .on('instance:created', (p) => create(p.createMs, label(p)))
    .on('instance:create-failed', (p) => failed(label(p)))
    .on('instance:destroyed', (p) => destroyed({ [REASON]: p.reason, ...label(p) }))
    .on('instance:destroy-failed', label);
}

function recordGates(instruments: Instruments, attachment: Attachment): void {
  const duration = instruments.time('call.duration', 'Duration of calls, waits included', WORK_BUCKETS);
  const wait = instruments.time('call.wait_time', 'Total wait of calls', WAIT_BUCKETS);
  const retries = instruments.count('call.retries', '{attempt}', 'Retried attempts');
  const throttles = instruments.count('call.throttles', '{call}', 'Waits of calls, by reason');
  const lookups = instruments.count('cache.lookups', '{lookup}', 'Cache lookups, by result');
  const storeFailures = instruments.count(
    'cache.store_failures',
    '{failure}',
    'Failures of the shared store of a cache',
  );
  const quarantines = instruments.count('key.quarantines', '{key}', 'Quarantined API keys');
  const costs = instruments.count('call.cost', '{unit}', 'What calls spent of budgets, by meter');
  const unaffordable = instruments.count(
    'budget.rejections',
    '{call}',
    'Calls that did not fit into a budget',
  );
  const gates = new BoundedLabels();
  const meters = new BoundedLabels();
  const meter = (name: string): Attributes => ({ [METER]: meters.name(name) });
  const gate = ({ source }: { readonly source: string }): Attributes => ({ [GATE]: gates.name(source) });
  attachment
    .on('call:finished', (p) => {
      duration(p.durationMs, { [OUTCOME]: p.outcome, ...gate(p), ...instruments.failure(p) });
      wait(p.waitMs, gate(p));
      for (const [name, amount] of Object.entries(p.cost ?? {}))
        costs({ ...gate(p), ...meter(name) }, amount);
    })
    .on('budget:exceeded', (p) => unaffordable({ ...gate(p), ...meter(p.meter) }))
    .on('call:retried', (p) => retries({ [OUTCOME]: p.class, ...gate(p) }))
    .on('call:throttled', (p) => throttles({ [REASON]: p.reason, ...gate(p) }))
    .on('cache:hit', (p) => lookups({ 'pipeline_pool.cache': p.shared ? 'shared' : 'hit', ...gate(p) }))
    .on('cache:miss', (p) => lookups({ ...gate(p), 'pipeline_pool.cache': 'miss' }))
    .on('cache:store-failed', (p) =>
      storeFailures({ ...gate(p), 'pipeline_pool.cache.operation': p.operation }),
    )
    .on('key:quarantined', (p) => quarantines({ [REASON]: p.reason, ...gate(p) }));
}

/** The tenants that use most by name, the others as `other`. */
function recordTenants(instruments: Instruments, attachment: Attachment, tenants: number): void {
  const use = new TenantUse(tenants);
  use.listen(attachment);
  const record = (
    of: 'running' | 'queued' | 'started' | 'runMs' | 'waitMs',
    name: string,
    unit: string,
    description: string,
  ): void => {
    const read = (observe: Observe): void => {
      for (const [tenant, figures] of use.figures())
        observe(unit === 's' ? figures[of] / 1_000 : figures[of], { [TENANT]: tenant });
    };
    const kind = of === 'running' || of === 'queued' ? 'UpDownCounter' : 'Counter';
    instruments.level(`tenant.${name}`, unit, description, read, kind);
  };
  record('running', 'active', '{request}', 'Running requests, by tenant');
  record('queued', 'pending_requests', '{request}', 'Queued requests, by tenant');
  record('started', 'requests', '{request}', 'Requests that began, by tenant');
  record('runMs', 'run_time', 's', 'Run time of requests, by tenant');
  record('waitMs', 'wait_time', 's', 'Wait of requests before the start, by tenant');
  use.listenToCosts(attachment);
  const read = (observe: Observe): void => {
    for (const [tenant, { spent }] of use.figures())
      for (const [meter, amount] of spent) observe(amount, { [TENANT]: tenant, [METER]: meter });
  };
  instruments.level(
    'tenant.cost',
    '{unit}',
    'What calls spent of budgets, by tenant and meter',
    read,
    'Counter',
  );
}

function recordBudgets(instruments: Instruments, sources: readonly MetricsSources[]): void {
  if (sources.length === 0) return;
  const meters = new BoundedLabels();
  const read = (observe: Observe): void => {
    for (const [meter, figures] of budgetFigures(sources, (name) => meters.name(name)))
      for (const state of BUDGET_STATES) observe(figures[state], { [METER]: meter, [BUDGET_STATE]: state });
  };
  instruments.level('budget.amount', '{unit}', 'What the budgets of the current requests allow', read);
}

/** The levels are the same in each process that shares a limit, so they are gauges: sums over processes mean nothing. */
function recordFleet(instruments: Instruments, sources: readonly MetricsSources[]): void {
  const limits = new BoundedLabels();
  const record = (
    of: 'active' | 'queued' | 'maxConcurrent' | 'members' | 'available' | 'lost',
    name: string,
    unit: string,
    description: string,
  ): void =>
    instruments.level(
      `fleet.${name}`,
      unit,
      description,
      (observe) => {
        for (const figures of fleetFigures(sources)) {
          const value = figures[of];
          if (value !== undefined) observe(Number(value), { [LIMIT]: limits.name(figures.name) });
        }
      },
      of === 'lost' ? 'Counter' : 'Gauge',
    );
  if (sources.length === 0) return;
  record('active', 'active', '{permit}', 'Weight of the permits that all processes hold');
  record('queued', 'queued', '{request}', 'Waiters of all processes');
  record('maxConcurrent', 'max', '{permit}', 'The limit of all processes together');
  record('members', 'members', '{process}', 'Processes that share the limit');
  record('available', 'available', '1', 'Whether the server of the limit answers: 1 or 0');
  record('lost', 'permits_lost', '{permit}', 'Permits that this process has lost before their release');
}

function recordTools(instruments: Instruments, attachment: Attachment): void {
  const duration = instruments.time('gen_ai.execute_tool.duration', 'Duration of tool calls', GEN_AI_BUCKETS);
  const errors = instruments.count('hook.errors', '{error}', 'Errors of listeners');
  const tools = new BoundedLabels();
  attachment
    .on('tool:finished', (p) =>
      duration(p.durationMs, {
        'gen_ai.operation.name': 'execute_tool',
        'gen_ai.tool.name': tools.name(p.tool),
        'gen_ai.tool.type': 'function',
        ...instruments.failure(p),
      }),
    )
    .on('hook:error', ({ event }) => errors({ 'pipeline_pool.event': event }));
}

function recordModels(instruments: Instruments, attachment: Attachment): void {
  const name = 'gen_ai.client.operation.duration';
  const duration = instruments.time(name, 'Duration of calls of models, without their waits', GEN_AI_BUCKETS);
  const usage = instruments.tokens('gen_ai.client.token.usage', 'Tokens of calls of models');
  const providers = new BoundedLabels();
  attachment.on('call:finished', (p) => {
    // A call that made no attempt, as with a cached result, used no model.
    if (p.provider === undefined || p.attempts === 0) return;
    const call = modelCall(providers.name(p.provider));
    duration(Math.max(0, p.durationMs - p.waitMs), { ...call, ...instruments.failure(p) });
    if (p.inputTokens !== undefined) usage(p.inputTokens, { 'gen_ai.token.type': 'input', ...call });
    if (p.outputTokens !== undefined) usage(p.outputTokens, { 'gen_ai.token.type': 'output', ...call });
  });
}
