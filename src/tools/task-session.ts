import { LeaseReleasedError } from '../errors.js';
import type { TaskIds } from '../hooks/events.js';
import { Connections, type NamedTool, type SeeOff } from './connections.js';
import { scopeOf } from './define-tools.js';

/** The errors that late calls got, to tell the end of a session of ours from an error that looks like it. */
const ends = new WeakSet<WeakKey>();

/** Whether this is what the calls of some session reject with because it has ended. */
export const isSessionEnd = (error: unknown): boolean =>
  typeof error === 'object' && error !== null && ends.has(error);

/** What a session needs of the instance that it is on. */
export interface SessionGround {
  readonly source: string;
  readonly instanceId: number;
  /** The clients of the factory. */
  readonly shared: Connections;
  /** The clients of the instance, which go on to the next session. */
  readonly instance: Connections;
  readonly seeOff: SeeOff;
}

/**
 * One task's time on an instance.
 *
 * Invariants:
 * - Once it has ended, it never gives a client again and begins no further call: whoever kept a tool manager of it is
 *   refused.
 * - What is under way is aborted in the step in which it ends, and the task's own clients are let go.
 */
export class TaskSession {
  readonly instanceId: number;
  readonly task: TaskIds;
  readonly #ground: SessionGround;
  readonly #own: Connections;
  readonly #ended = new AbortController();
  /** Calls of the host's code on clients of the instance. */
  readonly #running = new Set<Promise<unknown>>();

  constructor(ground: SessionGround, task: TaskIds) {
    this.instanceId = ground.instanceId;
    this.task = task;
    this.#ground = ground;
    this.#own = new Connections(ground.seeOff);
  }

  /** Aborts when the session ends, with the error that a late call gets. */
  get signal(): AbortSignal {
    return this.#ended.signal;
  }

  /** A tool's client. */
  client(wanted: NamedTool, signal: AbortSignal): Promise<unknown> {
    const { instanceId } = this;
    switch (scopeOf(wanted.tool)) {
      case 'shared':
        return this.#ground.shared.of(wanted).get({ instanceId, signal });
      case 'instance':
        return this.#ground.instance.of(wanted).get({ instanceId, signal });
      case 'task':
        return this.#own.of(wanted).get({ instanceId, signal, ...taskOf(this.task) });
    }
  }

  /** Remembers a call of the host's code that has begun. */
  track({ tool }: NamedTool, running: PromiseLike<unknown>): void {
    // A shared client belongs to no task, and a task's own goes with it: only the instance's go on to the next.
    if (scopeOf(tool) !== 'instance') return;
    const forget = (): void => {
      this.#running.delete(end);
    };
    const end: Promise<void> = Promise.resolve(running).then(forget, forget);
    this.#running.add(end);
  }

  /** Ends the session: refuses, aborts, and lets the task's own clients go. Never rejects. */
  end(): Promise<void> {
    if (!this.signal.aborted) {
      const end = new LeaseReleasedError(this.#ground.source, this.instanceId);
      ends.add(end);
      this.#ended.abort(end);
    }
    return this.#own.close(this.signal.reason);
  }

  /** Settles when none of its calls runs on a client of the instance any more, which may be never. Never rejects. */
  async quiet(): Promise<void> {
    await Promise.all(this.#running);
  }
}

const taskOf = ({ taskId }: TaskIds): { readonly taskId?: string } =>
  taskId === undefined ? {} : { taskId };
