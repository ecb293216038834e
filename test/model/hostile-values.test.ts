/**
 * Values that throw when they are looked at, at every place where the host's code gives the library one: thrown,
 * rejected, returned or resolved. Whatever they are, no slot, permit or waiter is lost, every call settles, and nothing
 * ends up as an unhandled rejection.
 */
import fc from 'fast-check';
import { afterEach, beforeEach, chai, describe, expect, it } from 'vitest';
import {
  ConcurrencyLimiter,
  createPipelineManager,
  defineTools,
  type GateStreamSource,
  LIFECYCLE_EVENTS,
  LifecycleHooks,
  logTo,
  PipelinePool,
  pipelineFactory,
  ServiceGate,
} from '../../src/index.js';
import { describeError } from '../../src/internal/redaction.js';

const fail = (): never => {
  throw new Error('looked at');
};
const everyTrap = new Proxy({}, { get: () => fail }) as ProxyHandler<object>;
const throwingFields = (target: object, fields: readonly PropertyKey[]): object =>
  Object.defineProperties(target, Object.fromEntries(fields.map((field) => [field, { get: fail }])));

const FIELDS = ['name', 'message', 'code', 'status', 'statusCode', 'response', 'headers', 'cause', 'errors'];

/** Each is made anew: some of them can be used once. */
const VALUES: Values = {
  undefined: () => undefined,
  null: () => null,
  symbol: () => Symbol('s'),
  bigint: () => 10n ** 3_000n,
  string: () => 'x'.repeat(100_000),
  function: () => fail,
  'plain object': () => ({ status: 429, headers: { 'retry-after': {} } }),
  'object without prototype': () => Object.create(null),
  'revoked proxy': () => {
    const { proxy, revoke } = Proxy.revocable({}, {});
    revoke();
    return proxy;
  },
  'proxy that throws': () => new Proxy({}, everyTrap),
  'function proxy that throws': () => new Proxy(fail, everyTrap),
  'error with getters that throw': () => throwingFields(new Error('x'), FIELDS),
  'object with getters that throw': () => throwingFields({}, [...FIELDS, 'toString', Symbol.toPrimitive]),
  'thenable whose then throws when read': () => throwingFields({}, ['then']),
  'thenable that throws': () => ({
    // biome-ignore lint/suspicious/noThenProperty: thenables are what is tested
    then: fail,
  }),
  'thenable that settles twice': () => ({
    // biome-ignore lint/suspicious/noThenProperty: thenables are what is tested
    then: (resolve: (value: unknown) => void, reject: (error: unknown) => void) => {
      resolve(Object.create(null));
      reject(Symbol('twice'));
    },
  }),
  'promise with a constructor that throws': () => throwingFields(Promise.resolve(1), ['constructor']),
  'promise with a then of its own': () =>
    Object.defineProperty(Promise.resolve(1), 'then', { value: fail, configurable: true }),
  'cyclic error': () => {
    const error = new Error('round');
    return Object.assign(error, { cause: error, errors: [error], response: error, error });
  },
  'error with a message that is none': () =>
    Object.assign(new Error('x'), { message: Object.create(null), code: {} }),
  'status that is none': () =>
    Object.assign(new Error('x'), { status: Symbol('s'), response: 5, headers: 'h' }),
  'response with a body that fails': () =>
    new Response(new ReadableStream({ pull: (controller) => controller.error(Symbol('body')) }), {
      status: 503,
    }),
  'prototype that throws': () => new Proxy(new Error('x'), { getPrototypeOf: fail, get: fail }),
};

type Way = 'throws' | 'rejects' | 'returns' | 'resolves';

/** What one call of a callback does: fails or answers with a hostile value, or answers as it should. */
interface Behavior {
  readonly way: Way | 'works';
  readonly value: string;
}

type Values = Readonly<Record<string, () => unknown>>;

const behaviorsOf = (ways: readonly (Way | 'works')[], values: Values): fc.Arbitrary<Behavior[]> =>
  fc.array(fc.record({ way: fc.constantFrom(...ways), value: fc.constantFrom(...Object.keys(values)) }), {
    minLength: 1,
    maxLength: 8,
  });

/** Plays behaviors one after another, then works. */
function playing(behaviors: readonly Behavior[], values: Values): Play {
  const left = [...behaviors];
  return <R>(works: () => R): R => {
    const { way, value: name } = left.shift() ?? { way: 'works', value: '' };
    if (way === 'works') return works();
    const value = values[name]?.();
    if (way === 'throws') throw value;
    if (way === 'returns') return value as R;
    // A promise must be made by hand: `async` would look at the value at once.
    return (way === 'rejects' ? Promise.reject(value) : Promise.resolve().then(() => value)) as R;
  };
}

/** Hooks whose listeners and logger are hostile as well. */
function hostileHooks(play: <R>(works: () => R) => R): LifecycleHooks {
  const hooks = new LifecycleHooks({ redact: (text) => play(() => text) });
  for (const event of LIFECYCLE_EVENTS) hooks.on(event, () => play(() => undefined));
  const write = () => play(() => undefined);
  logTo(hooks, { debug: write, info: write, warn: write, error: write }, { level: 'debug' });
  return hooks;
}

const settled = async (calls: readonly Promise<unknown>[]): Promise<void> =>
  void (await Promise.allSettled(calls));

type Play = <R>(works: () => R) => R;

/** What keeps its promise whatever its callbacks, played by `play`, and its listeners, played by `listen`, do. */
const SCENARIOS: Readonly<Record<string, (play: Play, listen: Play) => Promise<void>>> = {
  'loses no permit of a limiter': async (play, listen) => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1, hooks: hostileHooks(listen) });
    const control = new AbortController();
    const runs = [1, 2, 3].map(() => limiter.run(() => play(() => 1)));
    runs.push(limiter.run(() => play(() => 1), { signal: control.signal }));
    control.abort(VALUES['revoked proxy']?.());
    await settled(runs);
    expect(limiter.stats()).toMatchObject({ active: 0, queued: 0 });
    await limiter.close();
  },
  'loses no slot of a pool and no waiter': async (play, listen) => {
    const pool = new PipelinePool<unknown>({
      size: 2,
      hooks: hostileHooks(listen),
      createRetry: { baseMs: 1, maxMs: 1 },
      validateAfterIdleMs: 0,
      create: () => play(() => ({})),
      validate: () => play(() => true),
      prepare: () => play(() => {}),
      reset: () => play(() => {}),
      destroy: () => play(() => {}),
    });
    const uses = [1, 2, 3, 4].map(() => pool.use(() => play(() => 1), { timeoutMs: 2_000 }));
    await settled(uses);
    await settled([pool.acquire({ timeoutMs: 2_000 }).then((lease) => lease.release({ discard: true }))]);
    await pool.close({ timeoutMs: 2_000 });
    expect(pool.stats()).toMatchObject({ live: 0, leased: 0, queued: 0, creating: 0, destroying: 0 });
  },
  'loses no permit or key of a gate': async (play, listen) => {
    const gate = new ServiceGate({
      name: 'service',
      hooks: hostileHooks(listen),
      maxConcurrent: 1,
      keys: ['key-number-one', 'key-number-two'],
      retry: { attempts: 2, baseMs: 1, maxMs: 1 },
      cooldown: { baseMs: 1, maxMs: 1, exhaustedMs: 1, quarantinedMs: 1 },
      cache: { max: 10, ttlMs: 1_000 },
      timeoutMs: 2_000,
      classify: () => play(() => undefined),
    });
    const runs = [1, 2, 3].map((n) => gate.run(() => play(() => 1), { cacheKey: `${n % 2}` }));
    runs.push(gate.run(() => play(() => 1)) as Promise<number>);
    await settled(runs);
    expect(gate.stats()).toMatchObject({
      running: 0,
      queuedForStart: 0,
      backingOff: 0,
      limiter: { active: 0, queued: 0 },
    });
    await gate.close();
  },
  'ends a stream of a gate': async (play, listen) => {
    const gate = new ServiceGate({
      name: 'service',
      hooks: hostileHooks(listen),
      maxConcurrent: 1,
      retry: { attempts: 2, baseMs: 1, maxMs: 1 },
      cooldown: { baseMs: 1, maxMs: 1, exhaustedMs: 1, quarantinedMs: 1 },
      timeoutMs: 2_000,
    });
    const source = (() => play(() => hostileIterable(play))) as GateStreamSource<unknown>;
    for (let i = 0; i < 2; i++) await settled([consume(gate.stream(source))]);
    expect(gate.stats()).toMatchObject({
      running: 0,
      queuedForStart: 0,
      backingOff: 0,
      limiter: { active: 0, queued: 0 },
    });
    await gate.close();
  },
  'loses nothing of a manager: requests, streams and tools': async (play, listen) => {
    const hooks = hostileHooks(listen);
    const gate = new ServiceGate({
      name: 'service',
      hooks,
      keys: ['key-number-one'],
      retry: { attempts: 2, baseMs: 1, maxMs: 1 },
      cooldown: { baseMs: 1, maxMs: 1, exhaustedMs: 1, quarantinedMs: 1 },
    });
    const tools = defineTools({
      plain: {
        connect: () => play(() => 1),
        disconnect: () => play(() => {}),
        parse: (input: unknown) => play(() => input),
        call: () => play(() => 1),
      },
      kept: {
        connect: () => play(() => 1),
        check: () => play(() => true),
        reset: () => play(() => {}),
        call: () => play(() => 1),
      },
      task: {
        scope: 'task',
        gate,
        connect: () => play(() => 1),
        disconnect: () => play(() => {}),
        cacheKey: () => play(() => 'key'),
        weight: () => play(() => 1),
        call: () => play(() => 1),
      },
    } as never);
    const factory = pipelineFactory({ mainAgent: tools as never, hooks });
    const manager = createPipelineManager({
      config: { poolSize: 1, maxConcurrentRequests: 2, requestTimeoutMs: 2_000 },
      createRetry: { baseMs: 1, maxMs: 1 },
      ...factory,
      hooks,
    });
    const work = async (pipeline: unknown): Promise<unknown> => {
      const agent = (pipeline as { mainAgentToolManager: Agent }).mainAgentToolManager;
      await settled([
        agent.call('plain'),
        agent.call('task', {}, { timeoutMs: 500 }),
        agent.answer('plain', '{}'),
        agent.answer('task', '{}', { timeoutMs: 500 }),
      ]);
      return play(() => 1);
    };
    await settled([
      manager.run('a', ({ pipeline }) => work(pipeline)),
      manager.run('b', () => play(() => 1)),
      consume(manager.stream('c', (() => play(() => hostileIterable(play))) as never)),
    ]);
    await manager.shutdown({ timeoutMs: 2_000 });
    await factory.close();
    expect(manager.stats()).toMatchObject({ pool: { live: 0, leased: 0, queued: 0 } });
    expect(manager.limiter.stats()).toMatchObject({ active: 0, queued: 0 });
    await gate.close();
  },
};

const unhandled: unknown[] = [];
const note = (error: unknown): void => void unhandled.push(error);
beforeEach(() => process.on('unhandledRejection', note));
afterEach(() => void process.off('unhandledRejection', note));

/** What fails is described in words: printed whole, some of these values would fill a log of hundreds of megabytes. */
async function played(name: string, callbacks: Play, listeners: Play): Promise<void> {
  try {
    await SCENARIOS[name]?.(callbacks, listeners);
  } catch (error) {
    throw error instanceof chai.AssertionError ? error : new Error(`Rejected with ${describeError(error)}`);
  }
  await new Promise((resolve) => setImmediate(resolve));
  expect(unhandled.splice(0).map((error) => describeError(error))).toEqual([]);
}

describe('A value that throws when it is looked at', () => {
  const behaviors = behaviorsOf(['throws', 'rejects', 'returns', 'resolves', 'works', 'works'], VALUES);

  it.each(Object.keys(SCENARIOS))('%s', (name) =>
    fc.assert(
      fc.asyncProperty(behaviors, behaviors, (callbacks, listeners) =>
        played(name, playing(callbacks, VALUES), playing(listeners, VALUES)),
      ),
      { numRuns: Number(process.env.HOSTILE_RUNS ?? 60) },
    ),
  );
});

/** What was done with enormous values: how many fields were read, and how often all of them were listed. */
const done = { reads: 0, lists: 0 };

/** A value of a million parts. Whatever is read of it leads to another. */
function endless(target: object, more: (name: PropertyKey) => unknown = () => undefined): object {
  return new Proxy(target, {
    get: (_, name) => {
      done.reads++;
      return name in target ? Reflect.get(target, name) : more(name);
    },
    has: () => ++done.reads > 0,
    getOwnPropertyDescriptor: (_, name) => {
      done.reads++;
      return Reflect.getOwnPropertyDescriptor(target, name);
    },
    ownKeys: () => {
      done.lists++;
      return [];
    },
  });
}

const MILLION = 1_000_000;
const TEXT = 'retry after 5 s. key=k '.repeat(MILLION / 2);
const MANY: unknown[] = new Array(MILLION).fill(0);
const listOf = (): object => endless(MANY);
const errorOf = (fields: object): object => endless(Object.assign(new Error('x'), fields));
const around = (of: string): object =>
  endless(new Error('x'), (name) => (name === of ? around(of) : undefined));

/** Reads of all but the texts are counted; those of the texts by the host's redaction. */
const ENORMOUS: Values = {
  text: () => TEXT,
  list: listOf,
  bytes: () => endless(new Uint8Array(10)),
  map: () => endless(new Map([[1, 1]])),
  'error with a long message': () => errorOf({ message: TEXT, code: TEXT, name: TEXT }),
  'error with a list as its message': () => errorOf({ message: listOf() }),
  'error with as many errors': () => errorOf({ errors: listOf(), cause: listOf() }),
  'error with as many causes': () => around('cause'),
  'error with as many errors behind one another': () => around('lastError'),
  'response with as many fields': () =>
    errorOf({
      status: 429,
      headers: endless({}),
      response: endless({}),
      error: endless({ details: listOf() }),
    }),
  'response with a long body': () => errorOf({ status: 429, message: TEXT, body: TEXT, data: TEXT }),
  'response with a long header': () => errorOf({ status: 429, headers: { 'retry-after': TEXT, date: TEXT } }),
  'response with a deep body': () => errorOf({ status: 429, body: around('error') }),
};

describe('A value of a million parts', () => {
  const behaviors = behaviorsOf(['throws', 'rejects', 'works'], ENORMOUS);

  it.each(Object.keys(SCENARIOS))('is never listed, and read in small part; %s', (name) =>
    fc.assert(
      fc.asyncProperty(behaviors, behaviors, async (callbacks, listeners) => {
        Object.assign(done, { reads: 0, lists: 0 });
        await played(name, playing(callbacks, ENORMOUS), playing(listeners, ENORMOUS));
        expect(done.lists).toBe(0);
        expect(done.reads).toBeLessThan(3_000);
      }),
      { numRuns: Number(process.env.HOSTILE_RUNS ?? 20) },
    ),
  );
});
interface Agent {
  call(name: string, input?: unknown, options?: object): Promise<unknown>;
  answer(name: string, input?: unknown, options?: object): Promise<string>;
}

/** An iterator each step of which may be hostile. */
const hostileIterable = (play: <R>(works: () => R) => R): object => {
  let items = 3;
  const iterator = {
    next: () => play(() => Promise.resolve({ done: --items < 0, value: items })),
    return: () => play(() => Promise.resolve({ done: true, value: undefined })),
  };
  return { [Symbol.asyncIterator]: () => play(() => iterator) };
};

async function consume(stream: AsyncIterable<unknown>): Promise<void> {
  let items = 0;
  for await (const _ of stream) if (++items === 2) break;
}
