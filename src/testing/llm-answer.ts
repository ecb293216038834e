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

/** The request body of a chat completion, as far as the stub reads it. */
export interface LlmRequest {
  readonly model: string;
  readonly messages: readonly { readonly role: string; readonly content?: unknown }[];
  readonly stream?: boolean;
  readonly stream_options?: { readonly include_usage?: boolean };
  readonly tools?: readonly unknown[];
  readonly [other: string]: unknown;
}

/** Words with their leading whitespace; joined, they are the text. */
export const tokensOf = (text: string): readonly string[] => text.match(/\s*\S+|\s+$/g) ?? [];

const textOf = (content: unknown): string => {
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

interface Delta {
  readonly role?: 'assistant';
  readonly content?: string | null;
  readonly tool_calls?: readonly unknown[];
}

/** One reply in OpenAI's two forms: a completion, and the chunks of a stream. */
export class LlmAnswer {
  readonly #id: string;
  readonly #created = Math.floor(Date.now() / 1000);
  readonly #request: LlmRequest;
  readonly #text: string | null;
  readonly #toolCalls: readonly {
    readonly id: string;
    readonly type: 'function';
    readonly function: { readonly name: string; readonly arguments: string };
  }[];
  readonly #finishReason: string;
  readonly #deltas: readonly Delta[];

  constructor(callId: number, request: LlmRequest, reply: LlmReply) {
    const { text, toolCalls = [], finishReason } = typeof reply === 'string' ? { text: reply } : reply;
    this.#id = `chatcmpl-${callId}`;
    this.#request = request;
    this.#text = text ?? (toolCalls.length > 0 ? null : '');
    this.#toolCalls = toolCalls.map(({ name, arguments: args }, i) => ({
      id: `call_${callId}_${i}`,
      type: 'function',
      function: { name, arguments: typeof args === 'string' ? args : JSON.stringify(args) },
    }));
    this.#finishReason = finishReason ?? (toolCalls.length > 0 ? 'tool_calls' : 'stop');
    this.#deltas = [
      ...tokensOf(this.#text ?? '').map((content) => ({ content })),
      ...this.#toolCalls.flatMap(({ id, type, function: { name, arguments: args } }, index) => [
        { tool_calls: [{ index, id, type, function: { name, arguments: '' } }] },
        ...tokensOf(args).map((piece) => ({ tool_calls: [{ index, function: { arguments: piece } }] })),
      ]),
    ];
  }

  /** The number of tokens; each is one chunk of the stream. */
  get tokens(): number {
    return this.#deltas.length;
  }

  get usage(): { prompt_tokens: number; completion_tokens: number; total_tokens: number } {
    const prompt = this.#request.messages.reduce((n, { content }) => n + tokensOf(textOf(content)).length, 0);
    return { prompt_tokens: prompt, completion_tokens: this.tokens, total_tokens: prompt + this.tokens };
  }

  completion(): unknown {
    return {
      ...this.#envelope('chat.completion'),
      choices: [
        {
          index: 0,
          message: {
            role: 'assistant',
            content: this.#text,
            refusal: null,
            ...(this.#toolCalls.length > 0 && { tool_calls: this.#toolCalls }),
          },
          logprobs: null,
          finish_reason: this.#finishReason,
        },
      ],
      usage: this.usage,
    };
  }

  /** The events of the stream without `[DONE]`: role, tokens, finish reason, and usage if requested. */
  *chunks(): Generator<string> {
    yield this.#event({ role: 'assistant', content: '' });
    for (const delta of this.#deltas) yield this.#event(delta);
    yield this.#event({}, this.#finishReason);
    if (this.#request.stream_options?.include_usage === true) {
      yield sse({ ...this.#envelope('chat.completion.chunk'), choices: [], usage: this.usage });
    }
  }

  #event(delta: Delta, finishReason: string | null = null): string {
    const choice = { index: 0, delta, logprobs: null, finish_reason: finishReason };
    return sse({ ...this.#envelope('chat.completion.chunk'), choices: [choice] });
  }

  #envelope(object: string) {
    return { id: this.#id, object, created: this.#created, model: this.#request.model };
  }
}

/** One server-sent event. */
const sse = (data: unknown): string => `data: ${JSON.stringify(data)}\n\n`;
