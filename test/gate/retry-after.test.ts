import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { headerOf, parseGoDuration, parseRetryAfter, retryAfterMsOf } from '../../src/gate/retry-after.js';

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

  it('reads an HTTP date', () => {
    expect(parseRetryAfter('Sun, 22 Nov 2026 10:01:30 GMT')).toBe(90_000);
  });

  it('reads a date that has passed as now', () => {
    expect(parseRetryAfter('Sun, 22 Nov 2026 09:00:00 GMT')).toBe(0);
  });

  it("reads a date against the server's own clock where it tells it", () => {
    expect(parseRetryAfter('Sun, 22 Nov 2026 08:00:10 GMT', 'Sun, 22 Nov 2026 08:00:00 GMT')).toBe(10_000);
    expect(parseRetryAfter('Sun, 22 Nov 2026 10:00:10 GMT', 'no date')).toBe(10_000);
    expect(parseRetryAfter('Sun, 22 Nov 2026 10:00:10 GMT', 'at 9')).toBe(10_000);
  });

  it.each(
    [
      ['', '-1', '1e3', 'soon', '9'.repeat(400), 'NaN', '2026-13-45'],
      // What `Date.parse` would take for a moment long ago.
      ['in 5', 'retry 3', 'soon 2026', 'Nov 2026', 'Sun, 22', 'Sun, 22 Xyz 2026 10:01:30 GMT'],
      // RFC 850 has two digits for a year, asctime no zone: neither has been sent for decades.
      ['Sunday, 22-Nov-26 10:01:30 GMT', 'Sun Nov 22 10:01:30 2026'],
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

  it('takes 0 for nothing said, and looks on', () => {
    expect(retryAfterMsOf(429, { 'retry-after': '0' })).toBeUndefined();
    expect(retryAfterMsOf(429, { 'retry-after': 'Sun, 22 Nov 2026 09:00:00 GMT' })).toBeUndefined();
    expect(retryAfterMsOf(429, { 'retry-after-ms': '0', 'retry-after': '2' })).toBe(2_000);
    expect(retryAfterMsOf(429, { 'retry-after': '0', 'ratelimit-reset': '3' })).toBe(3_000);
    expect(retryAfterMsOf(429, { 'x-ratelimit-reset-requests': '0s' })).toBeUndefined();
  });

  describe('of a 429', () => {
    it('takes the reset of the limit that is used up, the last of several', () => {
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
    ])('knows limits by whatever name they have after the prefix, in %s', (_, made) => {
      const headers = made({
        'X-RateLimit-Remaining-Requests': '100',
        'X-RateLimit-Reset-Requests': '1s',
        'X-RateLimit-Remaining-Tokens-Minute': '0',
        'X-RateLimit-Reset-Tokens-Minute': '42s',
      });
      expect(retryAfterMsOf(429, headers)).toBe(42_000);
    });

    it('takes the last reset where none is used up: what is left may be too little for the call', () => {
      const headers = {
        'x-ratelimit-reset-requests': '12ms',
        'x-ratelimit-remaining-requests': '40',
        'x-ratelimit-reset-tokens': '6m0s',
        'x-ratelimit-remaining-tokens': '90',
      };
      expect(retryAfterMsOf(429, headers)).toBe(360_000);
    });

    it('takes what is left for unknown where it is no count', () => {
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

    it('reads the reset that many others send: seconds, or a moment', () => {
      expect(retryAfterMsOf(429, { 'ratelimit-reset': '30' })).toBe(30_000);
      expect(retryAfterMsOf(429, { 'x-ratelimit-reset': String(NOW / 1000 + 45) })).toBe(45_000);
      expect(retryAfterMsOf(429, { 'x-ratelimit-reset': String(NOW + 45_000) })).toBe(45_000);
      expect(retryAfterMsOf(429, { 'x-ratelimit-reset': String(NOW / 1000 - 45) })).toBeUndefined();
      expect(retryAfterMsOf(429, { 'x-ratelimit-reset': 'later' })).toBeUndefined();
    });
  });

  it('takes a reset with a 503 only where that limit is used up', () => {
    const headers = { 'x-ratelimit-remaining-requests': '4999', 'x-ratelimit-reset-requests': '8.64s' };
    expect(retryAfterMsOf(503, headers)).toBeUndefined();
    expect(retryAfterMsOf(503, { 'ratelimit-reset': '30' })).toBeUndefined();
    expect(retryAfterMsOf(503, { ...headers, 'x-ratelimit-remaining-requests': '0' })).toBe(8_640);
    expect(retryAfterMsOf(503, { ...headers, 'retry-after': '2' })).toBe(2_000);
  });

  it.each([402, 408, 500, 502, 504, 529])('takes no reset with a %i, used up or not', (status) => {
    const headers = {
      'x-ratelimit-remaining-requests': '0',
      'x-ratelimit-reset-requests': '12ms',
      'ratelimit-remaining': '19990',
      'ratelimit-reset': '30',
    };
    expect(retryAfterMsOf(status, headers)).toBeUndefined();
    expect(retryAfterMsOf(status, { ...headers, 'retry-after': '7' })).toBe(7_000);
  });

  it('has no bound of its own', () => {
    expect(retryAfterMsOf(429, { 'retry-after': '7200' })).toBe(7_200_000);
  });

  it('says nothing where nothing is said', () => {
    for (const none of [undefined, null, {}, new Headers()])
      expect(retryAfterMsOf(429, none)).toBeUndefined();
  });
});

describe('headerOf', () => {
  it('reads Headers, plain objects of any case, lists and numbers', () => {
    expect(headerOf(new Headers({ 'Retry-After': '3' }), 'retry-after')).toBe('3');
    expect(headerOf({ 'Retry-After': '3' }, 'retry-after')).toBe('3');
    expect(headerOf({ 'retry-after': ['3', '4'] }, 'retry-after')).toBe('3');
    expect(headerOf({ 'retry-after': 3 }, 'retry-after')).toBe('3');
    expect(headerOf({ 'retry-after': null }, 'retry-after')).toBeUndefined();
    expect(headerOf('retry-after' as never, 'retry-after')).toBeUndefined();
  });
});
