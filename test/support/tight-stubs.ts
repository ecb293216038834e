/**
 * The four services, in a process of their own: however busy their clients' process is, a call counts here as it arrives.
 * `TightServices` starts it, and asks it for what it saw; it exits with its parent.
 */
import { randomFault, type StubCall, type StubService, startStubServices } from 'pipeline-pool/testing';
import { scriptedModel } from '../../examples/scripted-model.js';
import {
  JINA_REFUSES,
  LEFT_AT,
  LIMITS,
  programMs,
  SERPER_KEYS,
  sharedNowMs,
  TAKES_MS,
} from './tight-limits.js';

const CREATE = 'POST /v2/sandboxes';
const EXECUTE = 'POST /execute';

const timeScale = Number(process.argv[2]);
const secondMs = Number(process.argv[3]);
let programs = 0;
// Stubs scale their windows and all other durations.
const perSecond = (limit: number) => ({ limit, perMs: secondMs / timeScale });
const stubs = await startStubServices({
  timeScale,
  llm: { reply: scriptedModel, latencyMs: TAKES_MS.llm, maxNumSeqs: LIMITS.llmAtOnce, maxQueued: 0 },
  serper: {
    latencyMs: TAKES_MS.search,
    rate: perSecond(LIMITS.searchesPerSecond),
    keys: SERPER_KEYS,
    logSize: 100_000,
  },
  jina: {
    latencyMs: TAKES_MS.page,
    rate: perSecond(LIMITS.pagesPerSecond),
    fault: randomFault(JINA_REFUSES.share, {
      type: 'status',
      status: 429,
      retryAfter: { as: 'milliseconds', ms: JINA_REFUSES.cooldownMs * timeScale },
    }),
    logSize: 100_000,
  },
  e2b: {
    latencyMs: ({ route }) =>
      route === EXECUTE ? programMs(++programs) : route === CREATE ? TAKES_MS.creation : 0,
    maxSandboxes: LIMITS.sandboxes,
    createRate: perSecond(LIMITS.creationsPerSecond),
    logSize: 100_000,
  },
});
const { llm, serper, jina, e2b } = stubs;

/** What came to the services. `inASecond`: the most that ever came within a second, refused or not, wherever it begins. */
function saw() {
  const refused = (service: StubService, status = 429): number => service.stats().statuses[status] ?? 0;
  const creations = e2b.calls.filter(({ route }) => route === CREATE);
  return {
    llm: { calls: llm.stats().calls, atOnce: llm.stats().peakInFlight, refused: refused(llm, 503) },
    serper: {
      calls: serper.stats().calls,
      inASecond: SERPER_KEYS.map((key) => serper.peakStartsPer(secondMs, { key })),
      refused: refused(serper),
      transitMs: transitMs(serper.calls),
    },
    jina: {
      calls: jina.stats().calls,
      inASecond: jina.peakStartsPer(secondMs),
      refused: refused(jina),
      /** Those of the refused that would have been refused whatever the client did. */
      refusedAtRandom: jina.calls.filter(({ fault }) => fault !== undefined).length,
      transitMs: transitMs(jina.calls),
    },
    e2b: {
      creations: creations.length,
      inASecond: e2b.peakStartsPer(secondMs, { route: CREATE }),
      sandboxes: e2b.peakSandboxes,
      /** Milliseconds from the first creation to the last. */
      creatingMs: (creations.at(-1)?.startedAtMs ?? 0) - (creations[0]?.startedAtMs ?? 0),
      /** Milliseconds that sandboxes were needed, all together, at the pace of real services. */
      neededMs: Array.from({ length: programs }, (_, n) => TAKES_MS.creation + programMs(n + 1)).reduce(
        (sum, ms) => sum + ms,
        0,
      ),
      survivors: e2b.sandboxes.length,
      refused: refused(e2b),
      transitMs: transitMs(creations),
    },
    underWay: [llm, serper, jina, e2b].map((service) => service.stats().inFlight),
  };
}

/** Milliseconds that calls took from their gate to where they are counted. */
export interface Transit {
  readonly shortest: number;
  readonly median: number;
  readonly longest: number;
}

function transitMs(calls: readonly StubCall[]): Transit {
  // `performance.now()` counts from the start of this process.
  const sinceMs = sharedNowMs() - performance.now();
  const took = calls
    .map(({ startedAtMs, headers }) => startedAtMs + sinceMs - Number(headers[LEFT_AT]))
    .sort((a, b) => a - b);
  return { shortest: took[0] ?? 0, median: took[took.length >> 1] ?? 0, longest: took.at(-1) ?? 0 };
}

/** Where the services are to be found. */
const addresses = {
  llm: llm.baseUrl,
  serper: serper.url,
  jina: jina.url,
  e2b: e2b.connection,
};

/** What the process sends first, and what it answers to each request. */
export type Addresses = typeof addresses;
export type ServicesSaw = ReturnType<typeof saw>;
/** Both are answered with what the services saw; `forget` lets them count afresh. */
export type StubRequest = 'report' | 'forget';

process.on('message', (request: StubRequest) => {
  const answer = saw();
  if (request === 'forget') {
    stubs.resetStats();
    programs = 0;
  }
  process.send?.(answer);
});
process.once('disconnect', () => process.exit());
process.send?.(addresses);
