import type { GateStats } from '../gate/service-gate.js';

/** What a manager is given as a gate, as far as its figures matter. */
interface Counted {
  readonly name: string;
  stats(): unknown;
}

/** The figures of those gates that are `ServiceGate`s; another kind of gate may count whatever it likes. */
export function gateFigures(gates: readonly Counted[]): readonly GateStats[] {
  return gates.flatMap((gate) => {
    const stats = gate.stats();
    return isGateStats(stats) ? [stats] : [];
  });
}

function isGateStats(stats: unknown): stats is GateStats {
  const { name, keys, attempts } = Object(stats) as Partial<GateStats>;
  return typeof name === 'string' && Array.isArray(keys) && typeof attempts === 'number';
}

/** Whether every key is spent or refused: nothing can be asked of the service until somebody acts. */
export function isWithoutKeys({ keys }: GateStats): boolean {
  return keys.every(({ state }) => state === 'spent' || state === 'dead');
}

/** Whether the service or all of its keys rest because of refusals, and will come back. */
export function isCoolingDown(gate: GateStats): boolean {
  return gate.opensInMs > 0 && !isWithoutKeys(gate);
}
