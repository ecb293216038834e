/** What the four services allow, and how long they take. Durations are real ones; a time scale shortens all of them alike. */
export const LIMITS = {
  llmAtOnce: 8,
  searchesPerSecond: 5,
  pagesPerSecond: 3,
  sandboxes: 4,
  creationsPerSecond: 1,
} as const;
export const SERPER_KEYS = ['serper-key-1', 'serper-key-2'] as const;

/** How long calls take. */
export const TAKES_MS = { llm: 150, search: 300, page: 300, creation: 400 } as const;
/** One page in twenty is answered 429, and half a second of rest asked for. */
export const JINA_REFUSES = { share: 0.05, cooldownMs: 500 } as const;

/** How long the nth program takes. Two in a row take long now and then, so that all sandboxes are in use for a moment. */
export const programMs = (n: number): number => (n % 25 === 5 || n % 25 === 6 ? 3_000 : 800);

/** The header in which a client says when a call left its gate. */
export const LEFT_AT = 'x-left-at';
/** Milliseconds on a clock that all processes of a machine share. */
export const sharedNowMs = (): number => Number(process.hrtime.bigint()) / 1e6;
