import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import {
  headerOf,
  parseGoDuration,
  parseRetryAfter,
  retryAfterMsInBody,
  retryAfterMsOf,
} from '../../src/gate/retry-after.js';

const NOW = Date.parse('2026-11-22T10:00:00Z');

beforeEach(() => {
  vi.useFakeTimers({ now: NOW });
});
afterEach(() => {
  vi.useRealTimers();
});

describe('parseRetryAfter', () => {
  it.each([
    ['0', 0],
    ['7', 7_000],
    [' 120 ', 120_000],
    ['1.5', 1_500],
    ['86400', 86_400_000],
  ])('reads %j as seconds', (value, ms) => {
    expect(parseRetryAfter(value)).toBe(ms);
  });

  it.each([
    'Sun, 22 Nov 2026 10:01:30 GMT',
    'Sunday, 22-Nov-26 10:01:30 GMT',
    'Sun Nov 22 10:01:30 2026',
    '2026-11-22T10:01:30Z',
    '2026-11-22T11:01:30.000+01:00',
  ])('reads the date %j', (value) => {
    expect(parseRetryAfter(value)).toBe(90_000);
  });

  it('reads a time since 1970, in seconds, milliseconds or microseconds', () => {
    const until = Date.now() + 30_000;
    expect(parseRetryAfter(String(until / 1_000))).toBeCloseTo(30_000, 0);
    expect(parseRetryAfter(String(until))).toBe(30_000);
    expect(parseRetryAfter('1000000000')).toBe(0);
    expect(retryAfterMsOf(429, { 'retry-after-ms': String(until) })).toBe(30_000);
    const anthropic = {
      'anthropic-ratelimit-input-tokens-remaining': '0',
      'anthropic-ratelimit-input-tokens-reset': new Date(until).toISOString(),
      'anthropic-ratelimit-requests-remaining': '40',
      'anthropic-ratelimit-requests-reset': new Date(until + 60_000).toISOString(),
    };
    expect(retryAfterMsOf(429, anthropic)).toBe(30_000);
  });

  it('reads a date that has passed as now', () => {
    expect(parseRetryAfter('Sun, 22 Nov 2026 09:00:00 GMT')).toBe(0);
  });

  it('reads a date relative to the Date header, if there is one', () => {
    expect(parseRetryAfter('Sun, 22 Nov 2026 08:00:10 GMT', 'Sun, 22 Nov 2026 08:00:00 GMT')).toBe(10_000);
    expect(parseRetryAfter('Sun, 22 Nov 2026 10:00:10 GMT', 'no date')).toBe(10_000);
    expect(parseRetryAfter('Sun, 22 Nov 2026 10:00:10 GMT', 'at 9')).toBe(10_000);
  });

  it.each(
    [
      ['', '-1', '1e3', 'soon', '9'.repeat(400), 'NaN', '2026-13-45'],
      // What `Date.parse` would parse as a date long ago.
      ['in 5', 'retry 3', 'soon 2026', 'Nov 2026', 'Sun, 22', 'Sun, 22 Xyz 2026 10:01:30 GMT'],
    ].flat(),
  )('cannot read %j', (value) => {
    expect(parseRetryAfter(value)).toBeUndefined();
  });
});

describe('parseGoDuration', () => {
  it.each([
    ['12ms', 12],
    ['6m0s', 360_000],
    ['1h23m31s', 5_011_000],
    ['33.023s', 33_023],
    ['1m', 60_000],
    ['250us', 0.25],
    ['250µs', 0.25],
    ['0s', 0],
    ['17', 17_000],
  ])('reads %j', (value, ms) => {
    expect(parseGoDuration(value)).toBeCloseTo(ms, 6);
  });

  it.each(['', '-1', '-1s', 's', '1x', '1s 2s', '1d'])('cannot read %j', (value) => {
    expect(parseGoDuration(value)).toBeUndefined();
  });
});

describe('retryAfterMsOf', () => {
  it('prefers milliseconds to seconds, and both to resets', () => {
    const all = { 'retry-after-ms': '150', 'retry-after': '9', 'x-ratelimit-reset-requests': '4s' };
    expect(retryAfterMsOf(429, all)).toBe(150);
    expect(retryAfterMsOf(429, { ...all, 'retry-after-ms': 'x' })).toBe(9_000);
    expect(retryAfterMsOf(429, { 'x-ratelimit-reset-requests': '4s' })).toBe(4_000);
  });

  it('ignores 0, and reads the next header', () => {
    expect(retryAfterMsOf(429, { 'retry-after': '0' })).toBeUndefined();
    expect(retryAfterMsOf(429, { 'retry-after': 'Sun, 22 Nov 2026 09:00:00 GMT' })).toBeUndefined();
    expect(retryAfterMsOf(429, { 'retry-after-ms': '0', 'retry-after': '2' })).toBe(2_000);
    expect(retryAfterMsOf(429, { 'retry-after': '0', 'ratelimit-reset': '3' })).toBe(3_000);
    expect(retryAfterMsOf(429, { 'x-ratelimit-reset-requests': '0s' })).toBeUndefined();
  });

  describe('of a 429', () => {
    it('reads the reset of the exhausted limit, the last of several', () => {
      const headers = {
        'x-ratelimit-reset-requests': '12ms',
        'x-ratelimit-remaining-requests': '40',
        'x-ratelimit-reset-tokens': '6s',
        'x-ratelimit-remaining-tokens': '0',
        'ratelimit-reset': '30',
        'ratelimit-remaining': '19990',
      };
      expect(retryAfterMsOf(429, headers)).toBe(6_000);
      expect(retryAfterMsOf(429, { ...headers, 'ratelimit-remaining': '0' })).toBe(30_000);
    });

    it.each([
      ['Headers', (plain: Record<string, string>) => new Headers(plain)],
      ['a plain object', (plain: Record<string, string>) => plain],
    ])('recognizes limits per window, in %s', (_, made) => {
      const headers = made({
        'X-RateLimit-Remaining-Requests': '100',
        'X-RateLimit-Reset-Requests': '1s',
        'X-RateLimit-Remaining-Tokens-Minute': '0',
        'X-RateLimit-Reset-Tokens-Minute': '42s',
      });
      expect(retryAfterMsOf(429, headers)).toBe(42_000);
    });

    it('reads the last reset if no limit is exhausted: the remainder may be too small for the call', () => {
      const headers = {
        'x-ratelimit-reset-requests': '12ms',
        'x-ratelimit-remaining-requests': '40',
        'x-ratelimit-reset-tokens': '6m0s',
        'x-ratelimit-remaining-tokens': '90',
      };
      expect(retryAfterMsOf(429, headers)).toBe(360_000);
    });

    it('treats a remainder that is no count as unknown', () => {
      for (const remaining of ['-1', '', 'none']) {
        const headers = {
          'x-ratelimit-remaining-requests': remaining,
          'x-ratelimit-reset-requests': '50ms',
          'x-ratelimit-remaining-tokens': '10',
          'x-ratelimit-reset-tokens': '2s',
        };
        expect(retryAfterMsOf(429, headers)).toBe(2_000);
      }
    });

    it('reads the common reset headers: seconds, or a timestamp', () => {
      expect(retryAfterMsOf(429, { 'ratelimit-reset': '30' })).toBe(30_000);
      expect(retryAfterMsOf(429, { 'x-ratelimit-reset': String(NOW / 1000 + 45) })).toBe(45_000);
      expect(retryAfterMsOf(429, { 'x-ratelimit-reset': String(NOW + 45_000) })).toBe(45_000);
      expect(retryAfterMsOf(429, { 'x-ratelimit-reset': String(NOW / 1000 - 45) })).toBeUndefined();
      expect(retryAfterMsOf(429, { 'x-ratelimit-reset': 'later' })).toBeUndefined();
    });
  });

  it('reads a reset with a 503 only if that limit is exhausted', () => {
    const headers = { 'x-ratelimit-remaining-requests': '4999', 'x-ratelimit-reset-requests': '8.64s' };
    expect(retryAfterMsOf(503, headers)).toBeUndefined();
    expect(retryAfterMsOf(503, { 'ratelimit-reset': '30' })).toBeUndefined();
    expect(retryAfterMsOf(503, { ...headers, 'x-ratelimit-remaining-requests': '0' })).toBe(8_640);
    expect(retryAfterMsOf(503, { ...headers, 'retry-after': '2' })).toBe(2_000);
  });

  it.each([402, 408, 500, 502, 504, 529])('ignores a reset with a %i, exhausted or not', (status) => {
    const headers = {
      'x-ratelimit-remaining-requests': '0',
      'x-ratelimit-reset-requests': '12ms',
      'ratelimit-remaining': '19990',
      'ratelimit-reset': '30',
    };
    expect(retryAfterMsOf(status, headers)).toBeUndefined();
    expect(retryAfterMsOf(status, { ...headers, 'retry-after': '7' })).toBe(7_000);
  });

  it('reads a limit of any name in Headers, and no more than the first 100 of them', () => {
    const limit = { 'x-ratelimit-remaining-images': '0', 'x-ratelimit-reset-images': '8s' };
    expect(retryAfterMsOf(429, new Headers(limit))).toBe(8_000);
    let names = 0;
    function* keys() {
      for (;;) yield `x-${++names}`;
    }
    expect(retryAfterMsOf(429, { get: () => undefined, keys } as never)).toBeUndefined();
    expect(names).toBe(100);
  });

  it('has no upper bound', () => {
    expect(retryAfterMsOf(429, { 'retry-after': '7200' })).toBe(7_200_000);
  });

  it('returns undefined without a retry time', () => {
    for (const none of [undefined, null, {}, new Headers()])
      expect(retryAfterMsOf(429, none)).toBeUndefined();
  });

  it('reads the reset of a limit of Anthropic from headers that cannot be listed', () => {
    const headers = new Headers({ 'anthropic-ratelimit-tokens-reset': '30s' });
    expect(retryAfterMsOf(429, { get: (name) => headers.get(name) })).toBe(30_000);
  });
});

describe('headerOf', () => {
  it('reads Headers, plain objects in the usual spellings, lists and numbers', () => {
    expect(headerOf(new Headers({ 'Retry-After': '3' }), 'retry-after')).toBe('3');
    expect(headerOf({ 'Retry-After': '3' }, 'retry-after')).toBe('3');
    expect(headerOf({ 'X-RateLimit-Reset': '3' }, 'x-ratelimit-reset')).toBe('3');
    expect(headerOf({ 'RETRY-AFTER': '3' }, 'retry-after')).toBe('3');
    expect(headerOf({ 'retry-after': ['3', '4'] }, 'retry-after')).toBe('3');
    expect(headerOf({ 'retry-after': 3 }, 'retry-after')).toBe('3');
    expect(headerOf({ 'retry-after': null }, 'retry-after')).toBeUndefined();
    expect(headerOf('retry-after' as never, 'retry-after')).toBeUndefined();
  });
});

describe('retryAfterMsInBody', () => {
  it.each([
    [{ error: { code: 429, details: [{ '@type': 'x' }, { '@type': 'y', retryDelay: '17s' }] } }, 17_000],
    [{ retry_after: 2.5 }, 2_500],
    [{ error: { retryAfterMs: 150 } }, 150],
    [{ parameters: { retry_after: 3 } }, 3_000],
    [{ errors: [{ extensions: { 'Retry-After': '4' } }] }, 4_000],
    [{ errorDetails: [{ retryDelay: '5s' }] }, 5_000],
    [{ error: { metadata: { headers: { 'retry-after': '6' } } } }, 6_000],
    [{ error: { message: 'Rate limit reached. Please try again in 1.5s. Visit …' } }, 1_500],
    [{ message: 'Please retry after 20 seconds.' }, 20_000],
    [{ message: 'Try again in 6m0s' }, 360_000],
    [{ retryAfter: 0 }, undefined],
    [{ retryAfter: 'soon', message: 'try again' }, undefined],
    [undefined, undefined],
  ])('reads %j', (body, ms) => {
    expect(retryAfterMsInBody(body)).toBe(ms);
  });

  it('survives cycles, getters that throw, and bodies of any size', () => {
    const cycle: Record<string, unknown> = {};
    cycle.self = cycle;
    Object.defineProperty(cycle, 'bad', {
      enumerable: true,
      get: () => {
        throw new Error('no');
      },
    });
    expect(retryAfterMsInBody(cycle)).toBeUndefined();
    expect(retryAfterMsInBody(Array.from({ length: 1e5 }, () => ({ a: 1 })))).toBeUndefined();
    const { proxy, revoke } = Proxy.revocable({}, {});
    revoke();
    expect(retryAfterMsInBody(proxy)).toBeUndefined();
  });
});
