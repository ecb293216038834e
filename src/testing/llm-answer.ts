import { options } from '../internal/validate.js';
import type { RateDecision } from './stub-rate.js';
import type { Refusal } from './stub-service.js';

/** A tool call by the model. */
export interface StubToolCall {
  readonly name: string;
  /** A string is sent as is, so it may be broken JSON; an object is sent as JSON. */
  readonly arguments: string | Readonly<Record<string, unknown>>;
}

/** A reply of the model: text, tool calls, or both. */
export type LlmReply =
  | string
  | {
      readonly text?: string;
      readonly toolCalls?: readonly StubToolCall[];
      /** @default `tool_calls` with tool calls, otherwise `stop` */
      readonly finishReason?: 'stop' | 'length' | 'tool_calls' | 'content_filter';
    };

/**
 * A request as the stub reads it. `messages` are those of a chat completion, whichever interface was called: `system`,
 * `user`, `assistant` (with `tool_calls`) and `tool`. All other fields are those of the request's own body.
 */
export interface LlmRequest {
  readonly model: string;
  readonly messages: readonly { readonly role: string; readonly content?: unknown }[];
  readonly stream?: boolean;
  readonly stream_options?: { readonly include_usage?: boolean };
  readonly tools?: readonly unknown[];
  readonly [other: string]: unknown;
}

/** A message of a chat completion. */
export type LlmMessage = LlmRequest['messages'][number];

/** Words with their leading whitespace; joined, they are the text. */
export const tokensOf = (text: string): readonly string[] => text.match(/\s*\S+|\s+$/g) ?? [];

export const textOf = (content: unknown): string => {
  if (typeof content === 'string') return content;
  if (!Array.isArray(content)) return '';
  return content
    .map((part: { text?: unknown } | null) => (typeof part?.text === 'string' ? part.text : ''))
    .join(' ');
};

/** The default reply: the same for the same question. */
export function defaultReply({ messages }: LlmRequest): LlmReply {
  const asked = textOf(messages.findLast(({ role }) => role !== 'assistant')?.content);
  return `This is the answer of a stub to: ${asked.slice(0, 200)}`;
}

/** One reply of the model, as all interfaces send it, each in its own form. */
export class LlmAnswer {
  readonly callId: number;
  readonly request: LlmRequest;
  /** `null` beside tool calls. */
  readonly text: string | null;
  readonly toolCalls: readonly { readonly name: string; readonly arguments: string }[];
  readonly finishReason: NonNullable<Exclude<LlmReply, string>['finishReason']>;
  /** In seconds since 1970. */
  readonly created = Math.floor(Date.now() / 1000);

  constructor(callId: number, request: LlmRequest, reply: LlmReply) {
    const {
      text,
      toolCalls = [],
      finishReason,
    } = typeof reply === 'string'
      ? { text: reply }
      : options('the reply', reply, ['text', 'toolCalls', 'finishReason']);
    this.callId = callId;
    this.request = request;
    this.text = text ?? (toolCalls.length > 0 ? null : '');
    this.toolCalls = toolCalls.map(({ name, arguments: args }) => ({
      name,
      arguments: typeof args === 'string' ? args : JSON.stringify(args),
    }));
    this.finishReason = finishReason ?? (toolCalls.length > 0 ? 'tool_calls' : 'stop');
  }

  /** The tokens of the request. */
  get inputTokens(): number {
    return this.request.messages.reduce((n, { content }) => n + tokensOf(textOf(content)).length, 0);
  }

  /** The tokens of the reply: its words, and for each tool call its name and the words of its arguments. */
  get tokens(): number {
    const words = tokensOf(this.text ?? '').length;
    return this.toolCalls.reduce((n, call) => n + 1 + tokensOf(call.arguments).length, words);
  }
}

/** An event of a stream, and how many tokens of the reply have been sent with it. */
export type StreamedEvent = readonly [event: string, tokens: number];

/** An interface of an LLM server: how it reads requests, and writes replies and errors. */
export interface LlmInterface {
  readonly path: string;
  /** The request as a chat; a text says what is wrong with it. */
  read(body: unknown): LlmRequest | string;
  complete(answer: LlmAnswer): unknown;
  stream(answer: LlmAnswer): Iterable<StreamedEvent>;
  /** The last piece of a stream. */
  readonly tail: string;
  /** The body of an error. */
  error(status: number, refusal: Refusal, message?: string): unknown;
  /** An error in a stream that has begun with 200. */
  errorEvent(status: number, refusal: Refusal): string;
  /** The headers of every response: its id, and what is left of the rate limit. */
  headers(callId: number, rate: RateDecision | undefined): Record<string, string>;
}

/** The parts of a foreign body. */
export type Body = Readonly<Record<string, unknown>>;

export const isObject = (value: unknown): value is Body =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** The items of a list that are objects. */
export const objectsIn = (value: unknown): readonly Body[] =>
  Array.isArray(value) ? value.filter(isObject) : [];

/** A server-sent event. */
export const sse = (data: unknown, event?: string): string =>
  `${event === undefined ? '' : `event: ${event}\n`}data: ${JSON.stringify(data)}\n\n`;
