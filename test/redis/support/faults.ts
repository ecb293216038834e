import type { SimulatedProcess, Simulation } from './simulation.js';

/** Each seed is a run of its own; `SEEDS=100` and `SEED=1` (the first) look for more. */
export const SEEDS = Number(process.env.SEEDS ?? 3);
export const FIRST_SEED = Number(process.env.SEED ?? 1);
export const LEASE_MS = 600;

export function anyOf(simulation: Simulation): SimulatedProcess {
  const living = simulation.processes.filter(({ isDead }) => !isDead);
  return living[Math.floor(simulation.random() * living.length)] as SimulatedProcess;
}

export type Fault = (simulation: Simulation, add: () => void) => unknown;
export const FAULTS = {
  'stopped processes': (s) => anyOf(s).stop(s.between(20, 3 * LEASE_MS)),
  'processes stopped within a step': (s) => {
    anyOf(s).stall = { likely: s.random() < 0.5 ? 0 : 0.02, maxMs: s.between(1, 2 * LEASE_MS) };
  },
  'listeners that block': (s) => {
    anyOf(s).blocking = { likely: s.random() < 0.5 ? 0 : 0.1, maxMs: 2 * LEASE_MS };
  },
  'killed processes': (s, add) => {
    anyOf(s).kill();
    add();
  },
  'a frozen Redis': (s) => {
    s.frozenUntilMs = s.nowMs + s.between(20, 2 * LEASE_MS);
  },
  'broken connections': (s) => anyOf(s).disconnect(s.between(1, LEASE_MS)),
  'late replies': (s) => {
    s.latencyMs = s.random() < 0.5 ? 2 : s.between(2, LEASE_MS / 2);
  },
  'lost pushes': (s) => {
    anyOf(s).pushLoss = s.random() < 0.5 ? 0 : s.random();
  },
  'a clock that runs back': (s) => {
    s.skewMs -= s.random() < 0.5 ? s.between(0, 5_000) : 60_000;
  },
} satisfies Record<string, Fault>;
/** They freeze all grants for a lease. */
export const LOSSES = {
  'lost keys': async (s) => {
    const keys = (await s.client.keys('{*')).sort();
    const key = keys[Math.floor(s.random() * (keys.length + 2))];
    if (key === undefined) await s.client.flushAll();
    else await s.client.del(key);
  },
  'another server': (s) => {
    s.runId += 'a';
  },
} satisfies Record<string, Fault>;
