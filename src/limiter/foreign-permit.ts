import type { PermitOutcome } from '../hooks/events.js';
import { abortSignal } from '../internal/validate.js';
import { refund } from '../queue/fair-queue.js';
import type { Permit } from './limiter.js';
import { ReadyPermit, WaitingPermit } from './semaphore.js';

/** Releases a permit. An error of a foreign limiter must not cost a call its result. */
export function releasePermit(permit: Permit | undefined, outcome?: PermitOutcome): void {
  try {
    permit?.release(outcome);
  } catch {}
}

/** Releases a permit that was not used, so that its request is charged when it is used, and once. */
export function returnPermit(permit: Permit | undefined): void {
  const isOurs = permit instanceof ReadyPermit || permit instanceof WaitingPermit;
  if (isOurs && permit.extras !== undefined) refund(permit.extras);
  releasePermit(permit, 'ignored');
}

/** The signal that aborts when the permit is lost, as far as a foreign limiter gives one. Never throws. */
export function lossSignalOf(permit: Permit | undefined): AbortSignal | undefined {
  try {
    const signal = permit?.signal;
    return signal === undefined ? undefined : abortSignal('permit.signal', signal);
  } catch {
    return undefined;
  }
}
