import { ScriptedFactory } from 'pipeline-pool/testing';
import { describe, expect, it, vi } from 'vitest';
import { onFakeTimers } from '../support/fake-timers.js';

onFakeTimers();

const context = (instanceId: number, signal = new AbortController().signal) => ({ instanceId, signal });

/** Whether a promise has settled, and how, without waiting for it. */
async function stateOf(promise: Promise<unknown>): Promise<string> {
  const pending = {};
  await vi.advanceTimersByTimeAsync(0);
  return Promise.race([promise, Promise.resolve(pending)]).then(
    (value) => (value === pending ? 'pending' : 'fulfilled'),
    () => 'rejected',
  );
}

describe('ScriptedFactory', () => {
  it('creates, validates, prepares, resets and destroys instances by default', async () => {
    const factory = new ScriptedFactory();
    const { create, validate, prepare, reset, destroy } = factory.callbacks;
    const pipeline = await create(context(1));
    expect(pipeline).toEqual({ instanceId: 1 });
    expect(await validate(pipeline, context(1))).toBe(true);
    await prepare(pipeline, { ...context(1), taskId: 't' });
    await reset(pipeline, { ...context(1), taskId: 't' });
    expect(factory.live).toBe(1);
    await destroy(pipeline, { ...context(1), reason: 'idle' });
    expect(factory.live).toBe(0);
    expect(factory.calls().map(({ stage }) => stage)).toEqual([
      'create',
      'validate',
      'prepare',
      'reset',
      'destroy',
    ]);
    expect(factory.calls('prepare')).toMatchObject([{ instanceId: 1, taskId: 't' }]);
    expect(factory.calls('destroy')).toMatchObject([{ reason: 'idle' }]);
    expect(factory.violations).toEqual([]);
  });

  it('creates instances with make', async () => {
    const factory = new ScriptedFactory({ make: (instanceId) => `pipeline ${instanceId}` });
    expect(await factory.callbacks.create(context(3))).toBe('pipeline 3');
  });

  it('rejects, throws, or resolves with any value, one step per call', async () => {
    const error = new Error('mine');
    const factory = new ScriptedFactory()
      .next('create', { does: 'rejects', error }, { does: 'throws' })
      .next('validate', { does: 'returns', value: false });
    const { create, validate } = factory.callbacks;
    await expect(create(context(1))).rejects.toBe(error);
    expect(() => create(context(2))).toThrow('create of instance 2 throws');
    expect(factory.live).toBe(0);
    const pipeline = await create(context(3));
    expect(await validate(pipeline, context(3))).toBe(false);
    expect(await validate(pipeline, context(3))).toBe(true);
  });

  it('falls back to always when next has no more steps', async () => {
    const factory = new ScriptedFactory()
      .always('create', { does: 'rejects' })
      .next('create', { does: 'ok' });
    const { create } = factory.callbacks;
    await create(context(1));
    await expect(create(context(2))).rejects.toThrow('create of instance 2 rejects');
    await expect(create(context(3))).rejects.toThrow('create of instance 3 rejects');
  });

  it('is slow or never settles, with or without honoring its signal', async () => {
    const factory = new ScriptedFactory().next(
      'create',
      { does: 'slow', ms: 100 },
      { does: 'until-abort' },
      { does: 'never' },
      { does: 'until-abort' },
    );
    const abort = new AbortController();
    const reason = new Error('too late');
    const { create } = factory.callbacks;
    const slow = create(context(1, abort.signal));
    const aborted = create(context(2, abort.signal));
    const never = create(context(3, abort.signal));
    const failure = expect(aborted).rejects.toBe(reason);
    abort.abort(reason);
    await failure;
    await expect(create(context(4, abort.signal))).rejects.toBe(reason);
    expect(await stateOf(slow)).toBe('pending');
    await vi.advanceTimersByTimeAsync(100);
    expect(await stateOf(slow)).toBe('fulfilled');
    expect(await stateOf(never)).toBe('pending');
    expect(factory.live).toBe(2);
    expect(factory.peakLive).toBe(3);
  });

  it('holds calls until the test releases or fails them', async () => {
    const factory = new ScriptedFactory().always('create', { does: 'held' });
    const { create } = factory.callbacks;
    const [first, second] = [create(context(1)), create(context(2))];
    expect(factory.held('create').map(({ instanceId }) => instanceId)).toEqual([1, 2]);
    expect(factory.held('destroy')).toEqual([]);
    expect(factory.live).toBe(2);
    const [one, two] = factory.held('create');
    two?.fail(new Error('by hand'));
    await expect(second).rejects.toThrow('by hand');
    expect(await stateOf(first)).toBe('pending');
    one?.release();
    expect(await first).toEqual({ instanceId: 1 });
    expect(factory.held('create')).toEqual([]);
    expect(() => one?.release()).toThrow('settled already');
    expect(factory.live).toBe(1);
  });

  it('counts an instance as live until its teardown ends', async () => {
    const factory = new ScriptedFactory().next('destroy', { does: 'held' }, { does: 'rejects' });
    const { create, destroy } = factory.callbacks;
    const [a, b] = [await create(context(1)), await create(context(2))];
    const destroyed = destroy(a, context(1));
    expect(factory.live).toBe(2);
    factory.held('destroy')[0]?.release();
    await destroyed;
    expect(factory.live).toBe(1);
    await expect(destroy(b, context(2))).rejects.toThrow('destroy of instance 2 rejects');
    expect(factory.live).toBe(0);
    expect(factory.violations).toEqual([]);
  });

  it('lists violations by the pool', async () => {
    const factory = new ScriptedFactory().always('validate', { does: 'never' });
    const { create, validate, prepare, destroy } = factory.callbacks;
    const pipeline = await create(context(1));
    void validate(pipeline, context(1));
    await prepare(pipeline, context(1));
    await destroy(pipeline, context(1));
    await destroy(pipeline, context(1));
    await create(context(2));
    await create(context(2));
    expect(factory.violations).toEqual([
      'prepare of instance 1 during validate',
      'destroy of instance 1, which does not exist',
      'create of instance 2 a second time',
    ]);
  });

  it('permits destroy during a hanging callback, and no callback during destroy', async () => {
    const factory = new ScriptedFactory().next('reset', { does: 'never' }).next('destroy', { does: 'held' });
    const { create, reset, destroy, prepare } = factory.callbacks;
    const pipeline = await create(context(1));
    void reset(pipeline, context(1));
    void destroy(pipeline, context(1));
    expect(factory.violations).toEqual([]);
    await prepare(pipeline, context(1));
    expect(factory.violations).toEqual(['prepare of instance 1 during reset and destroy']);
  });

  it('rejects an invalid stage or step', () => {
    const factory = new ScriptedFactory();
    expect(() => factory.next('creat' as never, { does: 'ok' })).toThrow('stage');
    expect(() => factory.next('create', { does: 'sleeps' } as never)).toThrow('step.does');
    expect(() => factory.always('create', { does: 'slow' } as never)).toThrow('step.ms');
    expect(() => factory.next('create', 'ok' as never)).toThrow('step');
    expect(() => new ScriptedFactory({ makes: () => 1 } as never)).toThrow('makes');
    expect(() => new ScriptedFactory({ make: 1 } as never)).toThrow('make');
  });
});
