import type { LlmReply, LlmRequest } from 'pipeline-pool/testing';

const textOf = ({ content }: LlmRequest['messages'][number]): string =>
  typeof content === 'string' ? content : '';

/** The input of each tool, from the question and the results so far. */
const INPUTS: Readonly<Record<string, (question: string, read: string) => readonly object[]>> = {
  search: (question) => [{ query: question }, { query: `${question} figures` }],
  read: (_, read) => [{ url: /https?:\/\/[^\s"]+/.exec(read)?.[0] ?? 'https://example.com/' }],
  python: (_, read) => [{ code: `print(${read.length} / 2)` }],
};

/**
 * A model for stub services: it uses each tool that it is offered once, in the order of the definitions, and then
 * answers. If a tool failed, it says so and gives up.
 */
export function scriptedModel({ messages, tools = [] }: LlmRequest): LlmReply {
  const question = textOf(messages.find(({ role }) => role === 'user') ?? { role: 'user' });
  const results = messages.filter(({ role }) => role === 'tool').map(textOf);
  const failure = results.find((result) =>
    /^(Tool \S+ (failed|took)|The input of tool|There is no tool)/.test(result),
  );
  if (failure !== undefined) return `I had to give up. ${failure}`;
  const turns = messages.filter(({ role }) => role === 'assistant').length;
  const next = (tools as readonly { readonly function: { readonly name: string } }[])[turns]?.function.name;
  if (next === undefined) return `Answered "${question}" from ${results.length} findings.`;
  const inputs = INPUTS[next]?.(question, results.join('\n')) ?? [{}];
  return { toolCalls: inputs.map((input) => ({ name: next, arguments: { ...input } })) };
}
