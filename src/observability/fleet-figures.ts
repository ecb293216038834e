import type { FleetStats } from '../limiter/limiter.js';

/** What all processes together do under the shared limits of one limiter or gate. Names are those of `FleetStats`. */
export interface FleetFigures
  extends Pick<FleetStats, 'queued' | 'members' | 'available' | 'frozen' | 'lost'> {
  /** The limiter or the gate. */
  readonly name: string;
  /** Weight held and the limit; absent for a gate that shares no permits, only windows and keys. */
  readonly active?: number;
  readonly maxConcurrent?: number;
  /** What this process was started with, where another limit was in force already. */
  readonly configured?: number;
}

interface Shared {
  readonly maxConcurrent?: number;
  readonly fleet?: FleetStats | undefined;
}

/** The figures in the stats of a limiter or of a gate, if it shares its limits with other processes. */
export function fleetFiguresOf(name: string, stats: unknown): FleetFigures | undefined {
  const own = Object(stats) as Shared & { readonly limiter?: Shared | undefined };
  // A gate has its permits in a limiter of its own, and shares its starts.
  const permits = own.limiter?.fleet === undefined ? undefined : own.limiter;
  const starts = own.fleet;
  const shared = permits?.fleet ?? starts;
  if (shared === undefined) return undefined;
  const { active, members, configured } = shared;
  const { maxConcurrent } = permits ?? own;
  const all = permits === undefined || starts === undefined ? [shared] : [shared, starts];
  return {
    name,
    ...(maxConcurrent !== undefined && { active, maxConcurrent }),
    queued: all.reduce((sum, { queued }) => sum + queued, 0),
    members,
    available: all.every(({ available }) => available),
    frozen: all.some(({ frozen }) => frozen),
    lost: all.reduce((sum, { lost }) => sum + lost, 0),
    ...(configured !== undefined && { configured }),
  };
}
