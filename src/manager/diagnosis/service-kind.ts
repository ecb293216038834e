/** What kind of service a gate guards, as far as advice depends on it. */
export type ServiceKind = 'llm' | 'sandbox' | 'service';

const LLM = /llm|gpt|openai|vllm|sglang|claude|anthropic|gemini|mistral|qwen|deepseek|llama|model|chat/i;
const SANDBOX = /sandbox|e2b|daytona|modal|jupyter|code-?(run|interpret|exec)/i;

/** Guessed from the gate's name: a wrong guess costs an ill-fitting sentence of advice, and nothing else. */
export function kindOf(gate: string): ServiceKind {
  if (SANDBOX.test(gate)) return 'sandbox';
  return LLM.test(gate) ? 'llm' : 'service';
}
