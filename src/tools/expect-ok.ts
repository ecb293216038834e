import { failureBytesOf, isResponse } from '../gate/response-content.js';
import { options as checkOptions, refusal, wholeNumber } from '../internal/validate.js';

/** Bytes of a body that `ResponseError` keeps by default. */
const DEFAULT_BYTES = 4_096;

/** A `Response` that was not ok, as thrown by `expectOk`. A gate classifies it, and `answer` of a tool shows its message. */
export class ResponseError extends Error {
  /** `ResponseError`. */
  override readonly name = 'ResponseError';
  /** The HTTP status. */
  readonly status: number;
  /** The headers of the response, `Retry-After` and rate limits included. */
  readonly headers: Headers;
  /** The body as text, cut off after `maxBytes`. */
  readonly body: string;

  /** @internal */
  constructor({ status, statusText, headers, url }: Response, body: string) {
    const from = URL.canParse(url) ? ` from ${new URL(url).origin}${new URL(url).pathname}` : '';
    const reason = body.trim() === '' ? '' : `: ${body.trim()}`;
    super(`${status}${statusText === '' ? '' : ` ${statusText}`}${from}${reason}`);
    this.status = status;
    this.headers = headers;
    this.body = body;
  }
}

/**
 * Returns a `Response` that is ok, and throws a `ResponseError` for any other, with its status, its headers and the
 * beginning of its body. `fetch` resolves for every status, so a tool without this check answers the agent with an error
 * page.
 *
 * The body of a failed response is read for five seconds at most.
 *
 * @param options `maxBytes`: bytes of the body that the error keeps, 0 to 65,536; 4,096 by default
 * @throws {ResponseError} if the response is not ok
 * @throws {TypeError | RangeError} for a wrong argument, naming it
 * @example
 * const response = await expectOk(await fetch(`https://r.jina.ai/${url}`, { signal }));
 * return await response.text();
 */
export async function expectOk<R extends Response>(
  response: R,
  options: { readonly maxBytes?: number | undefined } = {},
): Promise<R> {
  if (!isResponse(response)) throw new TypeError(refusal('response', 'a Response', response));
  checkOptions('expectOk', options, ['maxBytes']);
  const maxBytes = wholeNumber('maxBytes', options.maxBytes ?? DEFAULT_BYTES, 0, 65_536);
  if (response.ok) return response;
  const bytes = response.bodyUsed ? new Uint8Array() : await failureBytesOf(response);
  // A character that the cut has severed is left out.
  const body = new TextDecoder().decode(bytes.subarray(0, maxBytes), { stream: true });
  throw new ResponseError(response, body);
}
