import { describe, expect, it } from 'vitest';
import { withoutCredentials } from '../../src/internal/credentials.js';

describe('withoutCredentials', () => {
  it.each([
    ['authorization: Bearer abc.def-123456', 'abc.def-123456'],
    ['Incorrect API key provided: sk-proj-Ab12cd34Ef56gh78', 'sk-proj-Ab12cd34Ef56gh78'],
    ['jina_0123456789abcdef0123456789abcdef is unknown', 'jina_0123456789abcdef0123456789abcdef'],
    ['{"X-API-KEY":"0123456789abcdef0123456789abcdef01234567"}', '0123456789abcdef0123456789abcdef01234567'],
    ['GET https://example.org/?q=x&api_key=topsecret99&page=2', 'topsecret99'],
    ['cannot reach https://user:hunter22@example.org/', 'hunter22'],
    ['token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl expired', 'eyJhbGciOiJIUzI1NiJ9'],
  ])('hides what looks like one in: %s', (text, secret) => {
    const told = withoutCredentials(text);
    expect(told).not.toContain(secret);
    expect(told).toContain('[masked]');
  });

  it.each([
    'Unexpected token < in JSON at position 0',
    'Basic authentication is required',
    'no task-runner-of-the-mill-solution here',
    'connect ECONNREFUSED 127.0.0.1:8080',
    'api_key=#2…9f3a is refused',
  ])('leaves alone: %s', (text) => {
    expect(withoutCredentials(text)).toBe(text);
  });
});
