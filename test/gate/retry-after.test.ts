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
  });

  it.each(['', '-1', '1e3', 'soon', '9'.repeat(400), 'NaN', '2026-13-45'])('cannot read %j', (value) => {
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
    expect(retryAfterMsOf(all)).toBe(150);
    expect(retryAfterMsOf({ ...all, 'retry-after-ms': 'x' })).toBe(9_000);
    expect(retryAfterMsOf({ 'x-ratelimit-reset-requests': '4s' })).toBe(4_000);
  });

  it('takes the reset of the limit that is used up', () => {
    const headers = {
      'x-ratelimit-reset-requests': '12ms',
      'x-ratelimit-remaining-requests': '40',
      'x-ratelimit-reset-tokens': '6m0s',
      'x-ratelimit-remaining-tokens': '0',
    };
    expect(retryAfterMsOf(headers)).toBe(360_000);
    expect(retryAfterMsOf({ ...headers, 'x-ratelimit-remaining-tokens': '90' })).toBe(12);
    expect(retryAfterMsOf({ ...headers, 'x-ratelimit-remaining-requests': '0' })).toBe(360_000);
  });

  it('reads the reset that many others send: seconds, or a moment', () => {
    expect(retryAfterMsOf({ 'ratelimit-reset': '30' })).toBe(30_000);
    expect(retryAfterMsOf({ 'x-ratelimit-reset': String(NOW / 1000 + 45) })).toBe(45_000);
    expect(retryAfterMsOf({ 'x-ratelimit-reset': String(NOW + 45_000) })).toBe(45_000);
    expect(retryAfterMsOf({ 'x-ratelimit-reset': String(NOW / 1000 - 45) })).toBe(0);
    expect(retryAfterMsOf({ 'x-ratelimit-reset': 'later' })).toBeUndefined();
  });

  it('has no bound of its own', () => {
    expect(retryAfterMsOf({ 'retry-after': '7200' })).toBe(7_200_000);
  });

  it('says nothing where nothing is said', () => {
    for (const none of [undefined, null, {}, new Headers()]) expect(retryAfterMsOf(none)).toBeUndefined();
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
