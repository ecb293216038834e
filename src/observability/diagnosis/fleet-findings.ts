import { type FleetFigures, fleetFiguresOf } from '../fleet-figures.js';
import { counted, type Finding } from './finding.js';
import type { Report } from './recorder.js';

/** What is wrong with the limits that the manager and its gates share with other processes. */
export function fleetFindings(report: Report): Finding[] {
  return [report.limiter, ...report.gates]
    .flatMap((shared) => fleetFiguresOf(shared.name, shared) ?? [])
    .flatMap((figures) => [unavailable(figures), mismatched(figures), lost(report, figures)])
    .filter((finding) => finding !== undefined);
}

/** Where the permits of a shared limit are; `undefined` unless other processes share it. */
export const sharedWith = (figures: FleetFigures | undefined): string | undefined =>
  figures?.maxConcurrent === undefined || figures.members < 2
    ? undefined
    : `of ${figures.maxConcurrent} that ${figures.members} processes share, ${figures.active} are in use`;

export const fleetEvidence = ({ active = 0, queued, members }: FleetFigures): Record<string, number> => ({
  fleetActive: active,
  fleetQueued: queued,
  members,
});

function unavailable({ name, available, frozen, members }: FleetFigures): Finding | undefined {
  if (available && !frozen) return undefined;
  return {
    code: 'limits-unavailable',
    source: name,
    share: 0,
    message: available
      ? `The server of the shared limits of ${name} has lost its data, and grants nothing for one lease`
      : `The server of the shared limits of ${name} cannot be reached`,
    evidence: { members },
    remedy: available
      ? 'Find out why: a restart without persistence, a failover, `FLUSHALL`, or a `maxmemory-policy` other than `noeviction`. Nothing has to be done for this time.'
      : 'Check Redis and the way to it. Until it answers, new work waits, fails, or keeps to a share of the limit, as `whenUnavailable` says.',
  };
}

function mismatched({ name, configured, maxConcurrent = 0, members }: FleetFigures): Finding | undefined {
  if (configured === undefined) return undefined;
  return {
    code: 'limits-mismatched',
    source: name,
    share: 0,
    message: `This process was started with a limit of ${configured} for ${name}, but ${maxConcurrent} is in force for all processes`,
    evidence: { configured, maxConcurrent, members },
    remedy:
      'Start all processes with the same `maxConcurrent`. The first value stays until the last process has left, or until one sets `limiter.maxConcurrent`.',
  };
}

function lost(report: Report, { name }: FleetFigures): Finding | undefined {
  const count = report.count(`${name}:lost`);
  if (count === 0) return undefined;
  return {
    code: 'permits-lost',
    source: name,
    // Their work has ended.
    share: 0,
    message: `This process has lost ${counted(count, 'permit')} of ${name}, and what ran under ${count === 1 ? 'it' : 'them'} was aborted`,
    evidence: { lost: count },
    remedy:
      'Find out what kept this process from renewing its lease: a blocked event loop, a stopped process, or Redis out of reach for longer than `leaseMs`. Or raise `leaseMs`.',
  };
}
