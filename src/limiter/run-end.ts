import type { PermitOutcome } from '../hooks/events.js';
import type { Permit } from './limiter.js';
import { giveBack, type LimiterPermit } from './permit.js';

/**
 * What follows the end of one run, and then of another: two functions made anew for each run would be a twentieth of
 * what a free one costs. There are as many as ever ran at once.
 */
export class RunEnd {
  /** What is to be given back, while there is anything. */
  permit: LimiterPermit | undefined = undefined;
  /** Counts the beginnings and the ends of its runs: odd while it has one. */
  turn = 0;
  /** @internal */ next: RunEnd | undefined = undefined;
  /** @internal */ readonly ticket = begins.push(undefined) - 1;

  readonly onResult = (result: unknown): unknown => {
    this.finish('ok');
    return result;
  };

  readonly onError = (error: unknown): never => {
    this.finish('ignored');
    throw error;
  };

  finish(outcome: PermitOutcome): void {
    // A promise that hides a `then` of its own has called back before.
    if ((this.turn & 1) === 0) return;
    // Past the largest small number it goes on below zero, where odd and even are the same.
    this.turn = (this.turn + 1) | 0;
    const { permit } = this;
    this.permit = undefined;
    this.next = spareEnd;
    spareEnd = this;
    if (permit !== undefined) giveBack(permit, outcome);
  }

  /** Gives back what the run of that turn holds, if it does, and leaves the run to go on. */
  release(turn: number, outcome: PermitOutcome): void {
    const { permit } = this;
    if (this.turn !== turn || permit === undefined) return;
    this.permit = undefined;
    giveBack(permit, outcome);
  }
}

/**
 * The permit of a run that is like any other. It knows its end, and no end knows it: V8 notes whenever something old is made
 * to point at something young, and to note each permit was a fifteenth of what a free run costs.
 */
export class PlainPermit implements Permit {
  /** @internal */ declare readonly end: RunEnd;
  /** @internal */ declare readonly turn: number;

  constructor(end: RunEnd) {
    this.end = end;
    this.turn = end.turn;
  }

  get weight(): number {
    return 1;
  }

  get waitMs(): number {
    return 0;
  }

  release(outcome: PermitOutcome = 'ok'): void {
    this.end.release(this.turn, outcome);
  }

  [Symbol.dispose](): void {
    this.release();
  }
}

/**
 * The ends of runs that are granted and have not begun, by their tickets. Of a run that has begun nothing is kept here: one
 * that never ends goes with its limiter when both are dropped.
 */
const begins: (RunEnd | undefined)[] = [];
/** Those that no run has now. */
let spareEnd: RunEnd | undefined;

/** The end of a run that begins. */
export function endOf(permit: LimiterPermit): RunEnd {
  const end = spareEnd ?? new RunEnd();
  spareEnd = end.next;
  end.turn++;
  end.permit = permit;
  return end;
}

/** What the promise of a waiting run brings: a number, since V8 asks every object that a promise brings for a `then`. */
export function ticketOf(permit: LimiterPermit): number {
  const end = endOf(permit);
  begins[end.ticket] = end;
  return end.ticket;
}

/** The end that goes with a ticket, which is good for once. */
export function redeem(ticket: number): RunEnd {
  const end = begins[ticket] as RunEnd;
  begins[ticket] = undefined;
  return end;
}
