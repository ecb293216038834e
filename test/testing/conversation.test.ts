import { createServer, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { StubCall, StubReply } from 'pipeline-pool/testing';
import { describe, expect, it } from 'vitest';
import { Conversation } from '../../src/testing/conversation.js';

/** Serves one call with `reply`; returns what had happened when the last byte was sent. */
async function endOf(reply: StubReply): Promise<{ departed: boolean; aborted: boolean; body: string }> {
  let departed = false;
  const atEnd = { departed: false, aborted: false };
  const server = createServer((request, response) => {
    const arrived = {
      id: 1,
      route: 'GET /',
      method: 'GET',
      url: '/',
      params: {},
      query: new URLSearchParams(),
      headers: {},
      key: undefined,
      startedAtMs: 0,
    };
    const conversation = new Conversation(arrived, request, response, {
      answer: () => {},
      depart: () => {
        departed = true;
      },
    });
    const { call }: { call: StubCall } = conversation;
    const end = response.end.bind(response) as (last: string) => ServerResponse;
    response.end = (last: unknown) => {
      atEnd.departed = departed;
      atEnd.aborted = call.signal.aborted;
      return end(last as string);
    };
    void conversation.send(reply);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const response = await fetch(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
  const body = await response.text();
  server.closeAllConnections();
  await new Promise((resolve) => server.close(resolve));
  return { ...atEnd, body };
}

async function* pieces(): AsyncGenerator<string> {
  yield 'one ';
  yield 'two';
}

describe('Conversation', () => {
  it('departs just before the last byte is sent, so that it is not counted together with the next call', async () => {
    expect(await endOf({ body: 'whole' })).toEqual({ departed: true, aborted: true, body: 'whole' });
    expect(await endOf({ body: pieces(), tail: '!' })).toEqual({
      departed: true,
      aborted: true,
      body: 'one two!',
    });
  });
});
