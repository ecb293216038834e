import type { Attributes, Histogram, Meter, ObservableCallback } from '@opentelemetry/api';
import type { Attachment } from '../../hooks/attachment.js';
import { readError } from '../../internal/redaction.js';
import {
  COUNTERS,
  FLEET_LEVELS,
  type Instrument,
  LEVELS,
  TOTALS,
  WAIT_BUCKETS,
  WAIT_TIMES,
  WORK_BUCKETS,
  WORK_TIMES,
} from './instruments.js';
import {
  BoundedLabels,
  type Ending,
  type Instruments,
  type Labels,
  type Measure,
  type Measured,
  type Measurements,
  type Read,
  type Reading,
  type Readings,
} from './measurements.js';

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

type Name = readonly [name: string, unit: string];
/** Those without a name of their own are recorded in another shape, as the conventions ask. */
type Named = Exclude<
  Measured | Read,
  'requests' | 'toolDuration' | 'poolUsage' | 'poolLive' | 'poolLeased' | 'poolIdle'
>;

/**
 * Name and unit of each instrument. For pools only database connections have a convention; its shape and terms (`wait_time`,
 * `use_time`, `create_time`, `pending_requests`, `count`, `max`) are kept, in our own namespace.
 */
const NAMES: Readonly<Record<Named, Name>> = {
  permitsRejected: ['permit.rejections', '{request}'],
  leasesRejected: ['lease.rejections', '{request}'],
  leasesRevoked: ['lease.revocations', '{lease}'],
  leasesLeaked: ['lease.leaks', '{lease}'],
  createFailures: ['instance.create_failures', '{failure}'],
  unhealthy: ['instance.unhealthy', '{instance}'],
  destroyed: ['instance.destroyed', '{instance}'],
  destroyFailures: ['instance.destroy_failures', '{failure}'],
  callAttempts: ['call.attempts', '{attempt}'],
  callRetries: ['call.retries', '{attempt}'],
  callThrottles: ['call.throttles', '{call}'],
  callCost: ['call.cost', '{unit}'],
  budgetRejections: ['budget.rejections', '{call}'],
  cacheLookups: ['cache.lookups', '{lookup}'],
  cacheStoreFailures: ['cache.store_failures', '{failure}'],
  quarantines: ['key.quarantines', '{key}'],
  disconnectFailures: ['tool.disconnect_failures', '{failure}'],
  hookErrors: ['hook.errors', '{error}'],

  requestQueue: ['request.wait_time', 's'],
  permitWait: ['permit.wait_time', 's'],
  leaseWait: ['lease.wait_time', 's'],
  callWait: ['call.wait_time', 's'],
  requestDuration: ['request.duration', 's'],
  leaseHeld: ['lease.use_time', 's'],
  instanceCreate: ['instance.create_time', 's'],
  callDuration: ['call.duration', 's'],

  activeRequests: ['request.active', '{request}'],
  queuedRequests: ['request.queued', '{request}'],
  limiterActive: ['permit.active', '{permit}'],
  limiterQueued: ['permit.pending_requests', '{request}'],
  limiterMax: ['permit.max', '{permit}'],
  poolSize: ['instance.max', '{instance}'],
  poolQueued: ['lease.pending_requests', '{request}'],
  gateRunning: ['call.running_attempts', '{attempt}'],
  keys: ['key.count', '{key}'],
  budgetAmount: ['budget.amount', '{unit}'],
  fleetActive: ['fleet.active', '{permit}'],
  fleetQueued: ['fleet.queued', '{request}'],
  fleetMax: ['fleet.max', '{permit}'],
  fleetMembers: ['fleet.members', '{process}'],
  fleetAvailable: ['fleet.available', '1'],
  fleetLost: ['fleet.permits_lost', '{permit}'],
  tenantRunning: ['tenant.active', '{request}'],
  tenantQueued: ['tenant.pending_requests', '{request}'],
  tenantStarted: ['tenant.requests', '{request}'],
  tenantRunTime: ['tenant.run_time', 's'],
  tenantWaitTime: ['tenant.wait_time', 's'],
  tenantCost: ['tenant.cost', '{unit}'],
};

/** By label, the attributes that are not called `pipeline_pool.<label>`. */
const ATTRIBUTES: Readonly<Record<string, string>> = {
  pool: 'pipeline_pool.pool.name',
  limiter: 'pipeline_pool.limiter.name',
  limit: 'pipeline_pool.limit.name',
  gate: 'pipeline_pool.gate.name',
  tool: 'gen_ai.tool.name',
  class: 'pipeline_pool.outcome',
  kind: 'pipeline_pool.reason',
  result: 'pipeline_pool.cache',
  operation: 'pipeline_pool.cache.operation',
};

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
export const modelCall = (provider: string): Labels => ({
  'gen_ai.operation.name': provider.startsWith('gcp.') ? 'generate_content' : 'chat',
  'gen_ai.provider.name': provider,
});

interface Definition {
  readonly name: string;
  readonly unit: string;
  readonly description: string;
  readonly labels: readonly string[];
}

const defined = (name: string, unit: string, description: string, ...labels: string[]): Definition => ({
  name: `pipeline_pool.${name}`,
  unit,
  description,
  labels,
});

/** The instruments of a table that have names here, by key. */
const definitionsOf = (table: Readonly<Record<string, Instrument>>): (readonly [string, Definition])[] =>
  Object.entries(table).flatMap(([key, [, ...descriptionAndLabels]]) => {
    const named = (NAMES as Readonly<Partial<Record<string, Name>>>)[key];
    return named === undefined ? [] : [[key, defined(...named, ...descriptionAndLabels)] as const];
  });

/**
 * Records what is measured as OpenTelemetry metrics. Tool calls and calls of models follow the semantic conventions
 * (`gen_ai.execute_tool.duration`, `gen_ai.client.operation.duration`, `gen_ai.client.token.usage`).
 */
export class OtelMetrics {
  readonly #meter: Meter;
  readonly #errorTypes = new BoundedLabels();
  /** Of the observable instruments. */
  readonly #callbackRemovers: (() => void)[] = [];

  constructor(meter: Meter) {
    this.#meter = meter;
  }

  listen(attachment: Attachment, measurements: Measurements): void {
    measurements.listen(attachment, this.#instruments());
    this.#observe(measurements.readings());
    const rejections = defined('request.rejections', '{request}', 'Requests that did not start', 'outcome');
    const rejected = this.#counter(rejections);
    attachment.on('request:rejected', (p) => rejected(1, { outcome: p.outcome }, p));
    this.#listenToModels(attachment);
  }

  /** Removes the callbacks of the observable instruments. */
  stop(): void {
    for (const remove of this.#callbackRemovers.splice(0)) remove();
  }

  #instruments(): Instruments {
    const all: Record<string, Measure> = {};
    for (const [key, definition] of definitionsOf(COUNTERS)) all[key] = this.#counter(definition);
    for (const [key, definition] of definitionsOf(WAIT_TIMES))
      all[key] = this.#time(definition, WAIT_BUCKETS);
    for (const [key, definition] of definitionsOf(WORK_TIMES))
      all[key] = this.#time(definition, WORK_BUCKETS);
    const { leasesLeaked } = all as Instruments;
    const toolDuration = this.#histogram(
      { name: 'gen_ai.execute_tool.duration', unit: 's', description: 'Duration of tool calls' },
      GEN_AI_BUCKETS,
    );
    return {
      ...(all as Instruments),
      // The durations and the rejections of requests count them.
      requests: () => {},
      // A lease that is returned after all was counted when it was overdue.
      leasesLeaked: (by, labels) => {
        if (labels.kind !== 'returned') leasesLeaked(by, labels);
      },
      toolDuration: (ms, { tool }, ending) =>
        toolDuration.record(ms / 1_000, {
          'gen_ai.operation.name': 'execute_tool',
          'gen_ai.tool.name': tool,
          'gen_ai.tool.type': 'function',
          ...this.#failure(ending),
        }),
    };
  }

  #observe({ poolLeased, poolIdle, ...readings }: Readings): void {
    for (const [kind, table] of [
      ['UpDownCounter', LEVELS],
      // A sum over processes would mean nothing.
      ['Gauge', FLEET_LEVELS],
      ['Counter', TOTALS],
    ] as const)
      for (const [key, definition] of definitionsOf(table)) {
        const read = (readings as Readonly<Partial<Record<string, Reading>>>)[key];
        if (read !== undefined) this.#level(kind, definition, read);
      }
    const count = defined('instance.count', '{instance}', 'Live instances, by state', 'pool', 'state');
    this.#level('UpDownCounter', count, (observe) => {
      poolLeased((used, labels) => observe(used, { ...labels, state: 'used' }));
      poolIdle((idle, labels) => observe(idle, { ...labels, state: 'idle' }));
    });
  }

  #listenToModels(attachment: Attachment): void {
    const duration = this.#histogram(
      {
        name: 'gen_ai.client.operation.duration',
        unit: 's',
        description: 'Duration of calls of models, without their waits',
      },
      GEN_AI_BUCKETS,
    );
    const usage = this.#histogram(
      { name: 'gen_ai.client.token.usage', unit: '{token}', description: 'Tokens of calls of models' },
      TOKEN_BUCKETS,
    );
    const providers = new BoundedLabels();
    attachment.on('call:finished', (p) => {
      // A call that made no attempt, as with a cached result, used no model.
      if (p.provider === undefined || p.attempts === 0) return;
      const call = modelCall(providers.name(p.provider));
      duration.record(Math.max(0, p.durationMs - p.waitMs) / 1_000, { ...call, ...this.#failure(p) });
      const tokens = { input: p.inputTokens, output: p.outputTokens };
      for (const [type, count] of Object.entries(tokens))
        if (count !== undefined) usage.record(count, { ...call, 'gen_ai.token.type': type });
    });
  }

  #counter(definition: Definition): Measure {
    const { name, unit, description } = definition;
    const counter = this.#meter.createCounter(name, { unit, description });
    const attributesOf = this.#attributes(definition);
    return (by, labels, ending) => counter.add(by, attributesOf(labels, ending));
  }

  #time(definition: Definition, buckets: readonly number[]): Measure {
    const histogram = this.#histogram(definition, buckets);
    const attributesOf = this.#attributes(definition);
    return (ms, labels, ending) => histogram.record(ms / 1_000, attributesOf(labels, ending));
  }

  #histogram({ name, unit, description }: Omit<Definition, 'labels'>, buckets: readonly number[]): Histogram {
    const advice = { explicitBucketBoundaries: [...buckets] };
    return this.#meter.createHistogram(name, { unit, description, advice });
  }

  #level(kind: 'UpDownCounter' | 'Gauge' | 'Counter', definition: Definition, read: Reading): void {
    const { name, unit, description } = definition;
    const instrument = this.#meter[`createObservable${kind}`](name, { unit, description });
    const attributesOf = this.#attributes(definition);
    const callback: ObservableCallback = (result) =>
      read((value, labels) => result.observe(value, attributesOf(labels)));
    instrument.addCallback(callback);
    this.#callbackRemovers.push(() => instrument.removeCallback(callback));
  }

  /** The attributes for labels, with the type of the error if there was one. */
  #attributes({ name, labels }: Definition): (values: Labels, ending?: Ending) => Attributes {
    // The states of a key are not those of an instance.
    const names: Labels = { ...ATTRIBUTES, state: name.replace(/\w+$/, 'state') };
    const pairs = labels.map((label) => [label, names[label] ?? `pipeline_pool.${label}`] as const);
    return (values, ending) => {
      const attributes = this.#failure(ending);
      for (const [label, attribute] of pairs) attributes[attribute] = values[label];
      return attributes;
    };
  }

  #failure(ending: Ending | undefined): Attributes {
    if (ending === undefined || !isFailure(ending.outcome)) return {};
    return { 'error.type': this.#errorTypes.name(errorType(ending.error, ending.outcome)) };
  }
}
