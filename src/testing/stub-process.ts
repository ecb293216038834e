/** The process in which isolated stub services run: it starts them, and answers what the host asks. */
import {
  FIXED,
  type FromProcess,
  type Outcome,
  outcomeOf,
  type SentCall,
  type ServiceName,
  type StubSetup,
  type ToProcess,
} from './isolated-services.js';
import { dataOf, Sandbox } from './sandbox-fleet.js';
import { type StubServices, startStubServices } from './start-stub-services.js';
import type { StubCall } from './stub-call.js';

// The host may be gone, and this process about to end.
const post = (message: FromProcess): unknown => process.connected && process.send?.(message);
const sentCall = ({ query: _, signal: __, ...call }: StubCall): SentCall => call;

let runs = 0;
const running = new Map<number, (outcome: Outcome) => void>();

/** Calls host code in the host's process. */
const script =
  (service: ServiceName) =>
  async (...all: readonly unknown[]): Promise<unknown> => {
    const run = ++runs;
    const given = all.slice(0, -1).map((value) => (value instanceof Sandbox ? dataOf(value) : value));
    const call = all.at(-1) as StubCall;
    const outcome = await new Promise<Outcome>((resolve) => {
      running.set(run, resolve);
      call.signal.addEventListener('abort', () => post({ over: run }), { once: true });
      post({ run, service, given, call: sentCall(call) });
    });
    if ('error' in outcome) throw outcome.error;
    return outcome.value;
  };

async function start({ options, scripted }: StubSetup): Promise<StubServices> {
  const scripts: Partial<Record<ServiceName, object>> = Object.fromEntries(
    scripted.map(([service, option]) => [service, { ...options[service], [option]: script(service) }]),
  );
  const services = await startStubServices({ ...options, ...scripts });
  const started = Object.fromEntries(
    (Object.keys(FIXED) as ServiceName[]).map((service) => {
      const stub = membersOf(services[service]);
      return [service, Object.fromEntries(FIXED[service].map((member) => [member, stub[member]]))];
    }),
  ) as Record<ServiceName, Record<string, unknown>>;
  post({ started, timeOriginMs: performance.timeOrigin });
  return services;
}

const membersOf = (stub: unknown) => stub as Readonly<Record<string, unknown>>;

let starting: Promise<StubServices>;

process.on('message', async (message: ToProcess) => {
  if ('setup' in message) {
    starting = start(message.setup);
    starting.catch((failed: unknown) => post({ failed }));
  } else if ('ran' in message) {
    running.get(message.ran)?.(message);
    running.delete(message.ran);
  } else {
    const { ask, service, member, given } = message;
    const outcome = await outcomeOf(async () => {
      const stub = membersOf((await starting)[service]);
      const value = stub[member];
      if (member === 'calls') return (value as readonly StubCall[]).map(sentCall);
      return typeof value === 'function' ? value.apply(stub, given) : value;
    });
    post({ answered: ask, ...outcome });
  }
});
process.once('disconnect', () => process.exit());
// The host may have ended while this program was loaded, before anything listened.
if (!process.connected) process.exit();
