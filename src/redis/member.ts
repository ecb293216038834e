import { randomBytes } from 'node:crypto';
import { LimitsUnavailableError } from '../errors.js';
import { afterThisTurn, nowMs } from '../internal/clock.js';
import type { CommandConnection, Script, Subscriber } from './client.js';
import { LIMIT_KEYS } from './script.js';

/** One operation of a batch (see `script.ts`). */
export interface Operation {
  /** Appends the letter and the arguments. Returns false where there is nothing to do any more. */
  encode(args: string[]): boolean;
  /** Receives the entry in `results`. Not called where the batch failed: the next join restores what matters. */
  settle(result: unknown): void;
}

/** `words`: its letter and arguments, or `undefined` where there is nothing to do any more. */
export const operation = (
  words: () => readonly string[] | undefined,
  settle: Operation['settle'] = () => {},
): Operation => ({
  encode(args) {
    const own = words();
    if (own !== undefined) args.push(...own);
    return own !== undefined;
  },
  settle,
});

/** The one whose state the member keeps in Redis. */
export interface MemberOwner {
  /** The permits held, by id, with what Redis counts them as. */
  claims(): Iterable<readonly [id: string, weight: string]>;
  /** The waiters, in their order, to be queued again. */
  waiters(): Operation[];
  readonly hasWaiters: boolean;
  /** The limit as it is known here. */
  readonly limit: number;
  onJoined(isFirst: boolean): void;
  onGranted(id: string): void;
  /** Everything that Redis counts as held by this member. */
  onHeld(ids: readonly string[]): void;
  /** Permits that were claimed in vain. */
  onLost?(ids: readonly string[]): void;
  onLimit?(limit: number): void;
  /** The lease was not confirmed in time: another member may have its permits from now on. `isOutage`: for want of Redis. */
  onLeaseEnd(isOutage: boolean): void;
  onUnavailable(error: LimitsUnavailableError): void;
  /** Another attempt to reach Redis has failed. */
  onStillUnavailable?(): void;
  onAvailable(outageMs: number): void;
  /** A reply has come; the figures are new. */
  onFigures?(figures: FleetFigures): void;
  /** The next batch renews the lease: what is sent now is part of it. */
  onRenewal?(): void;
  /** What a script adds to its reply. */
  onExtra?(extra: unknown, isNewEpoch: boolean): void;
  /** A message to all members that the script of limits does not send. */
  onBroadcast?(words: readonly string[]): void;
}

/** A script in place of that of a limit. */
export interface MemberScript {
  readonly script: Script;
  /** The keys that it has besides those of a limit. */
  keys(): readonly string[];
  /** What follows the header. */
  argument(): string;
}

/** What a reply says about the fleet. */
export interface FleetFigures {
  /** Weight held by all members. */
  readonly active: number;
  /** Waiters of all members. */
  readonly queued: number;
  readonly members: number;
  /** How many members joined before this one. */
  readonly rank: number;
  /** Whether grants are frozen, so that holders can claim theirs after a loss of data. */
  readonly frozen: boolean;
  /** How many waiters were granted in this epoch. */
  readonly served: number;
}

interface MemberOptions {
  /** For messages: the limit's name. */
  readonly source: string;
  readonly keyPrefix: string;
  readonly leaseMs: number;
  readonly commandTimeoutMs: number;
  readonly script?: MemberScript | undefined;
  /** Whether it may hold its share of the limit without Redis. */
  readonly keepsShare: boolean;
}

/**
 * - `out`: not in the fleet, or no longer sure of it. Nothing is sent but a join.
 * - `joining`: a join is in flight. What is sent now follows it.
 * - `joined`: confirmed by Redis, of this epoch and generation.
 * - `left`: closed.
 */
type State = 'out' | 'joining' | 'joined' | 'left';

/** Operations in one script: it must not keep Redis busy for long. */
const MAX_OPERATIONS = 500;
/** The holder gives up earlier than Redis does: its timers may be late, and clocks differ in pace. */
const HOLDER_SHARE = 0.95;
const FIRST_RETRY_MS = 25;
const MAX_RETRY_MS = 1_000;

/**
 * A process's membership of one fleet limit: sends the batches, keeps the lease, and joins again whenever it is not sure
 * what Redis has executed.
 *
 * Invariants:
 * - One batch is in flight at most. After any failure, whatever was in flight or queued is forgotten, and a join with a
 *   higher generation claims the permits held and queues the waiters again: single operations are never repeated.
 * - The lease counts from the moment at which the batch that renewed it was sent, on the monotonic clock. Once it has
 *   ended nothing is accepted, neither a reply nor a push, before the owner knows (`onLeaseEnd`).
 * - A push counts only for the epoch and the generation of the latest join.
 * - While there is a member, it renews its lease every third of it, whether it holds anything or not.
 */
export class FleetMember {
  readonly #owner: MemberOwner;
  readonly #connection: CommandConnection;
  readonly #subscriber: Subscriber;
  readonly #source: string;
  readonly #leaseMs: number;
  readonly #commandTimeoutMs: number;
  readonly #script: MemberScript | undefined;
  readonly #limitKeys: readonly string[];
  readonly #keepsShare: boolean;
  readonly #channel: string;
  readonly #id = randomBytes(6).toString('base64url');

  #state: State = 'out';
  #generation = 0;
  #epoch = '';
  #limitVersion = 0;
  /** A limit that this process has set, until Redis has it. */
  #newLimit: number | undefined;
  #operations: Operation[] = [];
  #isFlushScheduled = false;

  /** The call in flight; a reply to any other is too late. */
  #call = 0;
  #isCalling = false;
  /** When the call in flight has had its time. */
  #callEndMs = 0;

  /** The reading of the clock with which the lease was checked last. */
  checkedMs = 0;
  /** When the lease ends on the monotonic clock, for the holder; 0 without a lease. */
  #leaseEndMs = 0;
  /** When the renewal was sent that is the latest, confirmed or not. */
  #renewedMs = Number.NEGATIVE_INFINITY;
  #wakeMs = Number.POSITIVE_INFINITY;
  #retryMs = 0;
  #retryDelayMs = FIRST_RETRY_MS;
  #timer: NodeJS.Timeout | undefined;
  #timerMs = Number.POSITIVE_INFINITY;

  #pushes = 0;
  /** Pushes that arrived before the reply to their join. */
  #early: string[] = [];
  #isSubscribed = false;
  #echoSent = 0;
  #echoSeen = 0;
  #echoMs = Number.NEGATIVE_INFINITY;
  #mustCheck = false;

  #unavailableSinceMs: number | undefined;
  #figures: FleetFigures = { active: 0, queued: 0, members: 0, rank: 0, frozen: false, served: 0 };

  constructor(
    owner: MemberOwner,
    connection: CommandConnection,
    subscriber: Subscriber,
    { source, keyPrefix, leaseMs, commandTimeoutMs, keepsShare, script }: MemberOptions,
  ) {
    this.#owner = owner;
    this.#connection = connection;
    this.#subscriber = subscriber;
    this.#source = source;
    this.#leaseMs = leaseMs;
    this.#commandTimeoutMs = commandTimeoutMs;
    this.#keepsShare = keepsShare;
    // The braces keep all keys of a limit in one slot of a cluster.
    this.#limitKeys = LIMIT_KEYS.map((key) => `{${keyPrefix}}:${key}`);
    this.#script = script;
    this.#channel = `{${keyPrefix}}:push`;
  }

  get figures(): FleetFigures {
    return this.#figures;
  }

  /** Whether Redis answers, as far as is known. */
  get isAvailable(): boolean {
    return this.#unavailableSinceMs === undefined && this.#connection.isReady;
  }

  /** Whether nothing is known of Redis, and nothing under way to it. */
  get isOut(): boolean {
    return this.#state === 'out';
  }

  /** Joins the fleet, now or as soon as Redis can be reached. */
  start(): void {
    if (this.#connection.isReady) {
      this.#join();
      return;
    }
    // It may be about to connect.
    this.#retryMs = nowMs() + this.#commandTimeoutMs;
    this.#arm();
  }

  /** Adds an operation to the next batch. Where a join is still to come it is not needed: the join restores all. */
  send(operation: Operation): void {
    if (this.#state !== 'joined' && this.#state !== 'joining') return;
    this.#operations.push(operation);
    this.#scheduleFlush();
  }

  /** Sets the limit for all members: now, or with the next join. */
  setLimit(limit: number): void {
    this.#newLimit = limit;
    this.send(this.#limitOperation(limit));
  }

  /** Whether the lease is certain at this moment, which is then `checkedMs`. Ends it where it is not. */
  checkLease(): boolean {
    if (this.#leaseEndMs === 0) return false;
    this.checkedMs = nowMs();
    if (this.checkedMs < this.#leaseEndMs) return true;
    this.#endLease();
    return false;
  }

  /** The connection of the client is back. */
  onUp(): void {
    if (this.#state === 'left') return;
    if (this.#state !== 'out') this.#abandon();
    this.#retryDelayMs = FIRST_RETRY_MS;
    this.#join();
  }

  /** The client has lost its connection. */
  onDown(): void {
    if (this.#state !== 'left') this.#fail(new Error('The client has lost its connection'));
  }

  /** The connection for pushes is back: some may have been lost. */
  onSubscriberReady(): void {
    if (this.#state !== 'joined') return;
    this.#echoSeen = this.#echoSent;
    this.#mustCheck = true;
    this.#scheduleFlush();
  }

  /** Fulfills when no batch is in flight. */
  async settled(): Promise<void> {
    while (this.#isCalling) await new Promise((resolve) => setTimeout(resolve, 1));
  }

  /** Leaves the fleet, and fulfills when Redis knows, or cannot be reached. */
  async leave(): Promise<void> {
    if (this.#state === 'left') return;
    // Redis executes the join that is in flight first.
    const wasIn = this.#state === 'joined' || this.#state === 'joining';
    this.#abandon();
    this.#state = 'left';
    clearTimeout(this.#timer);
    this.#leaseEndMs = 0;
    if (this.#isSubscribed) {
      this.#subscriber.unsubscribe(this.#channel);
      this.#subscriber.unsubscribe(`${this.#channel}:${this.#id}`);
    }
    if (!wasIn) return;
    const args = this.#header('leave');
    let timer: NodeJS.Timeout | undefined;
    const timeUp = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, this.#commandTimeoutMs);
    });
    const left = this.#run(args).then(
      () => {},
      () => {},
    );
    await Promise.race([left, timeUp]);
    clearTimeout(timer);
  }

  #header(mode: 'batch' | 'renew' | 'join' | 'local' | 'leave', echo = 0): string[] {
    const args = [mode, this.#id, String(this.#generation), this.#epoch, String(this.#leaseMs)];
    if (mode !== 'batch' && mode !== 'leave') {
      args.push(
        this.#mustCheck ? '-1' : String(this.#pushes),
        String(this.#owner.limit),
        String(this.#epoch === '' ? 0 : Math.max(1, this.#limitVersion)),
        String(echo),
      );
    }
    if (this.#script !== undefined) args.push(this.#script.argument());
    return args;
  }

  #run(args: string[]): Promise<unknown> {
    const { keys, script } = this.#script ?? {};
    return this.#connection.run([...this.#limitKeys, ...(keys?.() ?? [])], args, script);
  }

  #join(): void {
    if (this.#isCalling || this.#state === 'left') return;
    // What the lease no longer covers must not be claimed.
    this.checkLease();
    this.#state = 'joining';
    this.#generation++;
    this.#pushes = 0;
    this.#early = [];
    const args = this.#header(this.#keepsShare ? 'local' : 'join');
    for (const [id, weight] of this.#owner.claims()) args.push('H', id, weight);
    this.#operations = this.#owner.waiters();
    if (this.#newLimit !== undefined) this.#operations.unshift(this.#limitOperation(this.#newLimit));
    this.#execute(args, true);
  }

  #scheduleFlush(): void {
    if (this.#isFlushScheduled) return;
    this.#isFlushScheduled = true;
    afterThisTurn(this.#flush);
  }

  readonly #flush = (): void => {
    this.#isFlushScheduled = false;
    if (this.#state !== 'joined' || this.#isCalling) return;
    // A stalled process: what follows would be sent on behalf of a lease that has ended.
    if (!this.checkLease()) return;
    const now = this.checkedMs;
    const isDue = now >= this.#renewedMs + this.#leaseMs / 3 || this.#mustCheck;
    const isWoken = now >= this.#wakeMs && this.#owner.hasWaiters;
    if (this.#operations.length === 0 && !isDue && !isWoken) return;
    // Renewing costs Redis as much as an operation: a busy member does it every twentieth of a lease.
    const renews = isDue || isWoken || now >= this.#renewedMs + this.#leaseMs / 20;
    if (renews) this.#owner.onRenewal?.();
    let echo = 0;
    if (renews && this.#isSubscribed && now >= this.#echoMs + this.#leaseMs / 3) {
      // Nothing else notices a dead connection that was not reset.
      if (this.#echoSeen < this.#echoSent) this.#subscriber.restart();
      this.#echoSeen = this.#echoSent;
      this.#echoMs = now;
      echo = ++this.#echoSent;
    }
    const args = this.#header(renews ? 'renew' : 'batch', echo);
    this.#mustCheck = false;
    this.#execute(args, renews);
  };

  /** Sends the header with as many operations as fit. */
  #execute(args: string[], renews: boolean): void {
    const sent: Operation[] = [];
    const operations = this.#operations;
    let taken = 0;
    while (taken < operations.length && sent.length < MAX_OPERATIONS) {
      const operation = operations[taken++] as Operation;
      if (operation.encode(args)) sent.push(operation);
    }
    this.#operations = taken === operations.length ? [] : operations.slice(taken);
    const call = ++this.#call;
    const sentMs = nowMs();
    if (renews) this.#renewedMs = sentMs;
    this.#isCalling = true;
    this.#callEndMs = sentMs + this.#commandTimeoutMs;
    let reply: Promise<unknown>;
    try {
      reply = Promise.resolve(this.#run(args));
    } catch (error) {
      reply = Promise.reject(error);
    }
    reply.then(
      (value) => {
        if (this.#call !== call) return;
        this.#isCalling = false;
        try {
          this.#onReply(value as unknown[], sent, renews ? sentMs : undefined);
        } catch (error) {
          this.#fail(error);
        }
      },
      (error: unknown) => {
        if (this.#call === call) this.#fail(error);
      },
    );
    this.#arm();
  }

  #limitOperation(limit: number): Operation {
    return operation(
      () => ['L', String(limit)],
      () => {
        // Another may have been set while this one was on its way.
        if (this.#newLimit === limit) this.#newLimit = undefined;
      },
    );
  }

  /** Forgets the call in flight, and what was to follow. */
  #abandon(): void {
    this.#call++;
    this.#isCalling = false;
    this.#operations = [];
    this.#state = 'out';
  }

  #onReply(reply: unknown[], sent: readonly Operation[], renewedMs: number | undefined): void {
    if (Number(reply[0]) !== 0) {
      this.#abandon();
      this.#join();
      return;
    }
    const [
      ,
      epoch,
      wakeMs,
      limit,
      version,
      active,
      queued,
      members,
      rank,
      frozen,
      granted,
      held,
      lost,
      results,
      extra,
      served,
    ] = reply as [number, string, ...unknown[]];
    if (renewedMs !== undefined) this.#leaseEndMs = renewedMs + this.#leaseMs * HOLDER_SHARE;
    // The reply may have lain in a buffer while the process was stopped.
    if (!this.checkLease()) return;
    const isJoin = this.#state === 'joining';
    const isFirst = this.#epoch === '';
    const isNewEpoch = isJoin && this.#epoch !== String(epoch);
    if (isJoin) {
      this.#epoch = String(epoch);
      this.#state = 'joined';
    }
    this.#limitVersion = Number(version);
    this.#figures = {
      active: Number(active),
      queued: Number(queued),
      members: Number(members),
      rank: renewedMs === undefined ? this.#figures.rank : Number(rank),
      frozen: Number(frozen) === 1,
      served: Number(served),
    };
    this.#wakeMs = this.checkedMs + Math.max(1, Number(wakeMs)) + 1;
    this.#owner.onFigures?.(this.#figures);
    this.#owner.onExtra?.(extra, isNewEpoch && !isFirst);
    if (this.#newLimit === undefined) this.#owner.onLimit?.(Number(limit));
    // Before the answers: one that is granted in the batch that queued it has not waited.
    for (const id of granted as unknown[]) this.#owner.onGranted(String(id));
    for (const [index, operation] of sent.entries()) operation.settle((results as unknown[])[index]);
    this.#owner.onLost?.((lost as unknown[]).map(String));
    if (Array.isArray(held)) {
      const [pushes, ...ids] = held;
      this.#pushes = Math.max(this.#pushes, Number(pushes));
      this.#owner.onHeld(ids.map(String));
    }
    if (isJoin) this.#onJoined(isFirst);
    if (this.#operations.length > 0 || this.#mustCheck) this.#scheduleFlush();
    this.#arm();
  }

  #onJoined(isFirst: boolean): void {
    this.#retryDelayMs = FIRST_RETRY_MS;
    const since = this.#unavailableSinceMs;
    this.#unavailableSinceMs = undefined;
    for (const message of this.#early) this.#onPush(message);
    this.#early = [];
    // Only now: a subscriber without a membership would look like a survivor of a loss of data.
    if (!this.#isSubscribed) this.#subscribe();
    this.#owner.onJoined(isFirst);
    if (since !== undefined) this.#owner.onAvailable(nowMs() - since);
  }

  #subscribe(): void {
    this.#isSubscribed = true;
    Promise.all([
      this.#subscriber.subscribe(this.#channel, this.#onBroadcast),
      this.#subscriber.subscribe(`${this.#channel}:${this.#id}`, this.#onMessage),
    ]).then(
      () => this.onSubscriberReady(),
      () => {
        // Its connection is down; `onSubscriberReady` follows when it is back.
      },
    );
  }

  readonly #onBroadcast = (message: string): void => {
    const [kind, epoch] = message.split(' ');
    if (this.#state !== 'joined') return;
    if (kind === 'E' && epoch !== undefined && epoch !== this.#epoch) {
      this.#abandon();
      this.#join();
    } else if (kind === 'L') {
      this.#mustCheck = true;
      this.#scheduleFlush();
    } else this.#owner.onBroadcast?.(message.split(' '));
  };

  readonly #onMessage = (message: string): void => {
    if (message.startsWith('P ')) {
      this.#echoSeen = Math.max(this.#echoSeen, Number(message.slice(2)));
    } else if (message.startsWith('W ')) {
      this.#wakeMs = nowMs() + Number(message.slice(2)) + 1;
      this.#arm();
    } else if (this.#state === 'joining') this.#early.push(message);
    else this.#onPush(message);
  };

  /** Permits granted by the batch of another member. */
  #onPush(message: string): void {
    const [, epoch, generation, number, ...ids] = message.split(' ');
    if (this.#state !== 'joined' || epoch !== this.#epoch || Number(generation) !== this.#generation) return;
    if (!this.checkLease()) return;
    if (Number(number) > this.#pushes + 1) {
      // One was lost on the way: it stays uncounted until Redis has listed what is held.
      this.#mustCheck = true;
      this.#scheduleFlush();
    } else this.#pushes = Math.max(this.#pushes, Number(number));
    for (const id of ids) this.#owner.onGranted(id);
  }

  /** Whatever was in flight may have been executed or not: nothing is certain until the next join. */
  #fail(cause: unknown): void {
    if (this.#state === 'left') return;
    this.#abandon();
    const isFirst = this.#unavailableSinceMs === undefined;
    if (isFirst) this.#unavailableSinceMs = nowMs();
    this.#retryMs = nowMs() + this.#retryDelayMs;
    this.#retryDelayMs = Math.min(this.#retryDelayMs * 2, MAX_RETRY_MS, this.#leaseMs / 3);
    this.#arm();
    if (isFirst) this.#owner.onUnavailable(new LimitsUnavailableError(this.#source, cause));
    else this.#owner.onStillUnavailable?.();
  }

  #endLease(): void {
    // A process that was stopped knows nothing of what Redis has done meanwhile.
    const isTimely = nowMs() < this.#leaseEndMs + this.#leaseMs / 2;
    const isOutage = this.#unavailableSinceMs !== undefined && isTimely;
    this.#leaseEndMs = 0;
    const wasIn = this.#state === 'joined' || this.#state === 'joining';
    if (wasIn) this.#abandon();
    this.#owner.onLeaseEnd(isOutage);
    if (!wasIn) return;
    // In a turn of its own: this may be the middle of anything.
    this.#retryMs = 0;
    this.#arm();
  }

  /** Sets the timer for what is due first. */
  #arm(): void {
    let due = Number.POSITIVE_INFINITY;
    if (this.#leaseEndMs !== 0) due = this.#leaseEndMs;
    // One timer for all that is due: a timer of its own for each call would be set and cleared with each of them.
    if (this.#isCalling) due = Math.min(due, this.#callEndMs);
    if (this.#state === 'joined') {
      due = Math.min(due, this.#renewedMs + this.#leaseMs / 3);
      if (this.#owner.hasWaiters) due = Math.min(due, this.#wakeMs);
    } else if (this.#state === 'out') due = Math.min(due, this.#retryMs);
    if (due === Number.POSITIVE_INFINITY || due >= this.#timerMs) return;
    clearTimeout(this.#timer);
    this.#timerMs = due;
    this.#timer = setTimeout(this.#tick, Math.max(0, Math.ceil(due - nowMs())));
    // A connection keeps the process alive as long as the host wants it.
    this.#timer.unref();
  }

  readonly #tick = (): void => {
    this.#timerMs = Number.POSITIVE_INFINITY;
    if (this.#state === 'left') return;
    if (this.#leaseEndMs !== 0) this.checkLease();
    if (this.#isCalling && nowMs() >= this.#callEndMs) {
      this.#fail(new Error(`No reply within ${this.#commandTimeoutMs} ms`));
    }
    if (this.#state === 'joined') this.#flush();
    else if (this.#state === 'out' && nowMs() >= this.#retryMs) {
      if (this.#connection.isReady) this.#join();
      else this.#fail(new Error('The client is not connected'));
    }
    this.#arm();
  };
}
