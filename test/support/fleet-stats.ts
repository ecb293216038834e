import type { FleetStats } from 'pipeline-pool';

/** What the server of a shared limit may have reported. */
export const fleetStats = (some: Partial<FleetStats> = {}): FleetStats => ({
  active: 150,
  queued: 12,
  members: 4,
  available: true,
  frozen: false,
  lost: 0,
  ...some,
});
