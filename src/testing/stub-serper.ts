import type { IncomingHttpHeaders } from 'node:http';
import { callable, options } from '../internal/validate.js';
import { json, type StubCall, type StubReply, type StubRoute } from './stub-call.js';
import { countOrUnlimited, type KeyedRate, rateOf, type StubRate } from './stub-rate.js';
import {
  NO_DETAILS,
  type Refusal,
  STUB_SERVICE_OPTIONS,
  StubService,
  type StubServiceOptions,
} from './stub-service.js';

/** The request body of a search, as far as the stub reads it. */
export interface SerperRequest {
  readonly q: string;
  readonly gl?: string;
  readonly hl?: string;
  readonly num?: number;
  readonly page?: number;
  readonly tbs?: string;
}

/** One organic result of a search. */
export interface SerperResult {
  readonly title: string;
  readonly link: string;
  readonly snippet: string;
}

/** Options of `StubSerper`. */
export interface StubSerperOptions extends StubServiceOptions {
  /** The results. @default the same for the same query */
  readonly results?: (
    request: SerperRequest,
    call: StubCall,
  ) => readonly SerperResult[] | Promise<readonly SerperResult[]>;
  /** Rate limit per key; Serper's is 50 to 300 per second, depending on the plan. @default unlimited */
  readonly rate?: StubRate;
  /** Credits of each key; a successful search costs one. @default unlimited */
  readonly credits?: number;
}

/**
 * A stub of Serper's search (`POST /search`, `X-API-KEY`). Like the service, it responds with 429 both to exceeded rates and
 * to an empty balance, distinguished only by `message`, and never states when to retry.
 *
 * @example
 * const serper = await new StubSerper({ rate: { limit: 5, perMs: 1000 }, credits: 100 }).start();
 */
export class StubSerper extends StubService {
  protected override readonly routes: readonly StubRoute[] = [
    { method: 'POST', path: '/search', answer: (call) => this.#search(call) },
  ];
  readonly #results: NonNullable<StubSerperOptions['results']>;
  readonly #rate: KeyedRate | undefined;
  readonly #credits: number;
  readonly #creditsUsed = new Map<string, number>();

  constructor(given: StubSerperOptions = {}) {
    super(
      'StubSerper',
      options('StubSerper options', given, [...STUB_SERVICE_OPTIONS, 'results', 'rate', 'credits']),
    );
    this.#results = callable('results', given.results ?? defaultResults);
    this.#rate = rateOf('rate', given.rate, this.timeScale);
    this.#credits = countOrUnlimited('credits', given.credits);
  }

  /** The remaining credits of a key. */
  creditsLeft(key: string): number {
    return this.#credits - (this.#creditsUsed.get(key) ?? 0);
  }

  protected override keyOf(headers: IncomingHttpHeaders): string | undefined {
    return headers['x-api-key']?.toString();
  }

  protected override refuse(status: number, { reason }: Refusal = NO_DETAILS): StubReply {
    const outOfCredits = status === 402 || (status === 429 && reason === 'quota');
    const message = outOfCredits ? 'Not enough credits' : (REFUSALS[status] ?? 'Internal server error');
    return json(status, { message, statusCode: status });
  }

  async #search(call: StubCall): Promise<StubReply> {
    const { key } = call;
    if (key === undefined || !this.knowsKey(key)) return this.refuse(403);
    const request = call.body as SerperRequest | undefined;
    if (typeof request?.q !== 'string' || request.q === '') return this.refuse(400);
    if (this.creditsLeft(key) < 1) return this.refuse(429, { reason: 'quota' });
    if (this.#rate?.take(key).admitted === false) return this.refuse(429);
    await this.pause(this.latencyOf(call), call.signal);
    const results = await this.#results(request, call);
    this.#creditsUsed.set(key, (this.#creditsUsed.get(key) ?? 0) + 1);
    const { q, gl = 'us', hl = 'en', num = 10, page = 1 } = request;
    return json(200, {
      searchParameters: { q, gl, hl, num, page, type: 'search', engine: 'google' },
      organic: results.map((result, i) => ({ ...result, position: i + 1 })),
      credits: 1,
    });
  }
}

const REFUSALS: Readonly<Record<number, string>> = {
  400: 'Missing query parameter',
  401: 'Unauthorized. Sign up for a free account.',
  403: 'Unauthorized. Sign up for a free account.',
  404: 'Not Found',
  429: 'Too many requests',
  503: 'Service unavailable',
};

const defaultResults = ({ q, num = 10, page = 1 }: SerperRequest): readonly SerperResult[] =>
  Array.from({ length: num }, (_, i) => {
    const rank = (page - 1) * num + i + 1;
    return {
      title: `${q}: result ${rank}`,
      link: `https://example.com/${encodeURIComponent(q)}/${rank}`,
      snippet: `What a stub found at rank ${rank} for ${q}.`,
    };
  });
