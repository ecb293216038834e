import type { IncomingHttpHeaders } from 'node:http';
import { callable, options } from '../internal/validate.js';
import { retryAfterHeaders } from './fault.js';
import { tokensOf } from './llm-answer.js';
import { json, type StubCall, type StubReply, type StubRoute, withHeaders } from './stub-call.js';
import { type KeyedRate, rateOf, type StubRate } from './stub-rate.js';
import {
  NO_DETAILS,
  type Refusal,
  STUB_SERVICE_OPTIONS,
  StubService,
  type StubServiceOptions,
} from './stub-service.js';

/** The content of a page. */
export interface JinaPage {
  readonly title: string;
  /** Markdown. */
  readonly content: string;
}

/** Options of `StubJina`. */
export interface StubJinaOptions extends StubServiceOptions {
  /** The content of a page. @default the same for the same URL */
  readonly page?: (url: string, call: StubCall) => JinaPage | Promise<JinaPage>;
  /** Rate limit per key; Jina's is 500 per minute. @default unlimited */
  readonly rate?: StubRate;
  /** Rate limit of all calls without a key; Jina's is 20 per minute. @default unlimited */
  readonly keylessRate?: StubRate;
}

/**
 * A stub of Jina's reader (`GET /{url}`, `Authorization: Bearer`, key optional): plain text, or JSON for clients that
 * accept it. Errors have Jina's format: `code` is the HTTP status, `status` a more detailed one.
 *
 * 422 and 451 concern the page, 401 and 402 the key, 429 the rate; inject them with `faultNext` or `fault`.
 *
 * @example
 * const jina = await new StubJina({ rate: { limit: 500, perMs: 60_000 } }).start();
 * const page = await fetch(`${jina.url}/https://example.com/pools`);
 */
export class StubJina extends StubService {
  protected override readonly routes: readonly StubRoute[] = [
    { method: 'GET', path: '/*', answer: (call) => this.#read(call) },
  ];
  readonly #page: NonNullable<StubJinaOptions['page']>;
  readonly #rate: KeyedRate | undefined;
  readonly #keylessRate: KeyedRate | undefined;

  constructor(given: StubJinaOptions = {}) {
    super(
      'StubJina',
      options('StubJina options', given, [...STUB_SERVICE_OPTIONS, 'page', 'rate', 'keylessRate']),
    );
    this.#page = callable('page', given.page ?? defaultPage);
    this.#rate = rateOf('rate', given.rate, this.timeScale);
    this.#keylessRate = rateOf('keylessRate', given.keylessRate, this.timeScale);
  }

  protected override keyOf(headers: IncomingHttpHeaders): string | undefined {
    return /^Bearer (.+)$/i.exec(headers.authorization ?? '')?.[1];
  }

  protected override refuse(status: number, { reason, retryAfter }: Refusal = NO_DETAILS): StubReply {
    const isQuota = status === 429 && reason === 'quota';
    const [fine, name, message] = REFUSALS[isQuota ? 402 : status] ?? [
      status * 100,
      'ApplicationError',
      'Something went wrong.',
    ];
    const back = retryAfter && {
      retryAfter: Math.ceil(retryAfter.ms / 1000),
      retryAfterDate: new Date(Date.now() + retryAfter.ms).toISOString(),
    };
    return json(status, {
      data: null,
      ...back,
      code: status,
      name,
      status: fine,
      message,
      readableMessage: `${name}: ${message}`,
    });
  }

  async #read(call: StubCall): Promise<StubReply> {
    const { key } = call;
    if (key !== undefined && !this.knowsKey(key)) return this.refuse(401);
    const url = targetOf(call.url);
    if (url === undefined) return this.refuse(400);
    const admission = key === undefined ? this.#keylessRate?.take('') : this.#rate?.take(key);
    if (admission?.admitted === false) {
      const retryAfter = { as: 'seconds', ms: Math.max(1, admission.waitMs) } as const;
      return withHeaders(this.refuse(429, { reason: 'rate', retryAfter }), retryAfterHeaders(retryAfter));
    }
    await this.pause(this.latencyOf(call), call.signal);
    const { title, content } = await this.#page(url, call);
    if (!/\bapplication\/json\b/.test(call.headers.accept ?? '')) {
      return {
        headers: { 'content-type': 'text/plain; charset=utf-8' },
        body: `Title: ${title}\n\nURL Source: ${url}\n\nMarkdown Content:\n${content}\n`,
      };
    }
    const usage = { tokens: tokensOf(content).length };
    return json(200, {
      code: 200,
      status: 20000,
      data: { title, description: '', url, content, usage },
      meta: { usage },
    });
  }
}

/** The requested page: everything after the first slash, plain or percent-encoded. */
function targetOf(requested: string): string | undefined {
  const plain = requested.slice(1);
  try {
    const target = /^https?%3a/i.test(plain) ? decodeURIComponent(plain) : plain;
    return /^https?:\/\//i.test(target) ? new URL(target).href : undefined;
  } catch {
    return undefined;
  }
}

/** Jina's detailed status, name and message, by HTTP status. */
const REFUSALS: Readonly<Record<number, readonly [status: number, name: string, message: string]>> = {
  400: [40001, 'ParamValidationError', 'Invalid URL.'],
  401: [40103, 'AuthenticationRequiredError', 'Invalid API key.'],
  402: [40203, 'InsufficientBalanceError', 'Account balance not enough to run this query, please recharge.'],
  404: [40400, 'ResourceNotFoundError', 'No such resource.'],
  409: [40904, 'BudgetExceededError', 'The intended charge exceeds the budget.'],
  422: [42206, 'AssertionFailureError', 'Failed to load the page.'],
  429: [42903, 'RateLimitTriggeredError', 'Rate limit exceeded.'],
  451: [45102, 'SecurityCompromiseError', 'Access to this domain is blocked.'],
  503: [50302, 'ServiceCrashedError', 'The service crashed, please try again.'],
};

const defaultPage = (url: string): JinaPage => ({
  title: `Page at ${url}`,
  content: `What a stub read at ${url}.`,
});
