import { AdaptiveLimit } from '../../src/limiter/adaptive-limit.js';
import { LlmServer } from './llm-server.js';
import { seeded } from './random-numbers.js';
import { VirtualTime } from './virtual-time.js';

/** Callers of an LLM server in virtual time, and what they get of it behind a limit. */

/** What decides how many calls are in flight, and what it learns of each. */
export interface CallLimit {
  readonly limit: number;
  begin(streamed: boolean): {
    firstItem(): void;
    end(outcome: 'ok' | 'dropped', tokens: number | undefined): void;
  };
}

/** What callers got between two moments. */
export interface Share {
  calls: number;
  tokens: number;
  refused: number;
  timeouts: number;
  firstMs: number[];
}

export interface LlmScenario {
  readonly seed: number;
  /** Seconds of each phase, and how many callers of higher priority are there meanwhile. */
  readonly phases: readonly (readonly [seconds: number, others: number])[];
  readonly callers?: number;
  /** The share of calls that are streamed. */
  readonly streamed?: number;
  /** Whether plain calls report their tokens. */
  readonly usage?: boolean;
  readonly meanTokens?: number;
  readonly meanPrompt?: number;
  readonly prepare?: (server: LlmServer, time: VirtualTime) => void;
}

const ATTEMPT_MS = 4_304;
/** What a request or an answer takes to arrive, on average: loopback, HTTP and a busy client. */
const NETWORK_MS = 3;

/** Prompts and answers of the lengths that the real server was measured with. */
export function jobs(seed: number, meanTokens = 53, meanPrompt = 160) {
  const random = seeded(seed);
  const normal = () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  const within = (x: number, low: number, high: number) => Math.round(Math.max(low, Math.min(high, x)));
  return () => ({
    promptTokens: within(meanPrompt * Math.exp(0.5 * normal()), 32, 360),
    maxTokens: within(meanTokens * 0.86 * Math.exp(0.55 * normal()), 8, 4 * meanTokens),
    isStreamed: random(),
  });
}

/** Plays a scenario; returns what the callers got in each quarter of a second. */
export function play(
  scenario: LlmScenario,
  make: (time: VirtualTime, server: LlmServer) => CallLimit,
): Share[] {
  const { seed, phases, callers = 400, streamed = 0.5, usage = false } = scenario;
  const time = new VirtualTime();
  const server = new LlmServer(time);
  scenario.prepare?.(server, time);
  const limit = make(time, server);
  const shares: Share[] = [];
  const share = (): Share => {
    const at = Math.floor(time.nowMs / QUARTER_MS);
    while (shares.length <= at) shares.push({ calls: 0, tokens: 0, refused: 0, timeouts: 0, firstMs: [] });
    return shares[at]!;
  };
  const next = jobs(seed, scenario.meanTokens, scenario.meanPrompt);
  const network = seeded(seed + 1);
  let idle = callers;
  let inFlight = 0;

  const call = (): void => {
    const job = next();
    const isStreamed = job.isStreamed < streamed;
    const startedMs = time.nowMs;
    idle--;
    inFlight++;
    const known = limit.begin(isStreamed);
    const end = (outcome: 'ok' | 'dropped'): void => {
      known.end(outcome, outcome === 'ok' && (usage || isStreamed) ? job.maxTokens : undefined);
      inFlight--;
      idle++;
      fill();
    };
    const timer = time.after(ATTEMPT_MS, () => {
      abort?.();
      isOver = true;
      share().timeouts++;
      end('dropped');
    });
    let isOver = false;
    let abort: (() => void) | undefined;
    const arrive = (onArrival: () => void): void => {
      time.after(NETWORK_MS * (0.5 + network()), () => {
        if (!isOver) onArrival();
      });
    };
    arrive(() => {
      abort = server.submit({
        ...job,
        priority: 0,
        onToken: (first) => {
          share().tokens++;
          if (!first) return;
          arrive(() => {
            share().firstMs.push(time.nowMs - startedMs);
            if (isStreamed) known.firstItem();
          });
        },
        onDone: () =>
          arrive(() => {
            isOver = true;
            time.clear(timer);
            share().calls++;
            end('ok');
          }),
      });
      if (abort !== undefined) return;
      time.clear(timer);
      share().refused++;
      end('dropped');
    });
  };
  const fill = (): void => {
    while (idle > 0 && inFlight < limit.limit) call();
  };

  const otherJobs = jobs(seed + 99);
  let others = 0;
  let wanted = 0;
  const other = (): void => {
    if (others >= wanted) return;
    others++;
    const { promptTokens, maxTokens } = otherJobs();
    const ended = (): void => {
      others--;
      other();
    };
    const request = {
      promptTokens,
      maxTokens: Math.min(320, Math.max(100, 3 * maxTokens)),
      priority: -1,
      onToken: () => {},
      onDone: ended,
    };
    if (server.submit(request) === undefined) time.after(100, ended);
  };

  let atMs = 0;
  for (const [seconds, count] of phases) {
    time.after(atMs - time.nowMs, () => {
      wanted = count;
      for (let i = others; i < count; i++) other();
    });
    atMs += 1_000 * seconds;
  }
  time.after(0, fill);
  time.runUntil(atMs);
  share();
  return shares;
}

const QUARTER_MS = 250;

/** The sum of what was got between two moments, in seconds. */
export function between(shares: readonly Share[], from: number, to: number): Share {
  const sum: Share = { calls: 0, tokens: 0, refused: 0, timeouts: 0, firstMs: [] };
  for (const share of shares.slice(Math.round(4 * from), Math.round(4 * to))) {
    sum.calls += share.calls;
    sum.tokens += share.tokens;
    sum.refused += share.refused;
    sum.timeouts += share.timeouts;
    sum.firstMs.push(...share.firstMs);
  }
  sum.firstMs.sort((a, b) => a - b);
  return sum;
}

export const median = (sorted: readonly number[]): number => sorted[sorted.length >> 1] ?? Number.NaN;

/** A limit that never changes. */
export const fixed = (limit: number) => (): CallLimit => ({
  limit,
  begin: () => ({ firstItem: () => {}, end: () => {} }),
});

/** An `AdaptiveLimit`, which reads the gauge of the server every so many milliseconds. */
export const adaptive =
  (gaugeMs?: number) =>
  (time: VirtualTime, server: LlmServer): CallLimit => {
    const limit = new AdaptiveLimit({ max: 400, now: () => time.nowMs, random: () => 0 });
    const read = (): void => {
      limit.onGauge(server.waiting);
      time.after(gaugeMs!, read);
    };
    if (gaugeMs !== undefined) time.after(gaugeMs, read);
    return {
      get limit() {
        return limit.limit;
      },
      begin: (streamed) => {
        const call = limit.begin({ streamed });
        return { firstItem: call.firstItem, end: (outcome, usage) => call.end({ outcome, usage }) };
      },
    };
  };

/** Seconds of each phase: finding the limit, fewer places because others come first, and all of them again. */
const FIND_S = 13;
const LOSS_S = 16;
const RETURN_S = 16;
const OTHERS = 48;
/** Seconds that a limit has to settle: at first, after the loss, after the return. */
const SETTLED_S = [4, 4, 4.5] as const;

/** What a limit reaches, against the best fixed one of each phase. */
export interface Reached {
  /** Shares of the tokens: once settled, after a loss of capacity, after its return. */
  readonly found: number;
  readonly lost: number;
  readonly returned: number;
  /** The time to the first token once settled, over that of the smallest fixed limit with 95 % of the tokens. */
  readonly first: number;
  readonly timeouts: number;
  /** Those of that fixed limit: a long answer may take longer than an attempt may. */
  readonly timeoutsAtKnee: number;
}

/** Plays the three phases, and each fixed limit in the first two. */
export function reached(
  scenario: Omit<LlmScenario, 'phases'>,
  make: (time: VirtualTime, server: LlmServer) => CallLimit,
  limits: readonly number[],
): Reached {
  const [find, loss, back] = SETTLED_S;
  const shares = play(
    {
      ...scenario,
      phases: [
        [FIND_S, 0],
        [LOSS_S, OTHERS],
        [RETURN_S, 0],
      ],
    },
    make,
  );
  const found = between(shares, find, FIND_S);
  const lost = between(shares, FIND_S + loss, FIND_S + LOSS_S);
  const returned = between(shares, FIND_S + LOSS_S + back, FIND_S + LOSS_S + RETURN_S);
  const alone = limits.map((limit) => play({ ...scenario, phases: [[FIND_S, 0]] }, fixed(limit)));
  const whole = alone.map((each) => between(each, find, FIND_S));
  const small = limits.map((limit) =>
    between(
      play(
        {
          ...scenario,
          phases: [
            [1, 0],
            [LOSS_S, OTHERS],
          ],
        },
        fixed(limit),
      ),
      1 + loss,
      1 + LOSS_S,
    ),
  );
  const best = Math.max(...whole.map(({ tokens }) => tokens));
  const atKnee = whole.findIndex(({ tokens }) => tokens >= 0.95 * best);
  return {
    found: found.tokens / best,
    lost: lost.tokens / Math.max(...small.map(({ tokens }) => tokens)),
    returned: returned.tokens / (RETURN_S - back) / (best / (FIND_S - find)),
    first: median(found.firstMs) / median(whole[atKnee]!.firstMs),
    timeouts: between(shares, 0, FIND_S).timeouts,
    timeoutsAtKnee: between(alone[atKnee]!, 0, FIND_S).timeouts,
  };
}

/** The median of each figure. */
export function medians(all: readonly Reached[]): Reached {
  const of = (figure: keyof Reached) => median(all.map((one) => one[figure]).sort((a, b) => a - b));
  return {
    found: of('found'),
    lost: of('lost'),
    returned: of('returned'),
    first: of('first'),
    timeouts: of('timeouts'),
    timeoutsAtKnee: of('timeoutsAtKnee'),
  };
}
