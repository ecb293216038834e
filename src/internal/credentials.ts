/** Stands where something was that must not be told. */
export const MASKED = '[masked]';

/** What credentials look like, where nobody told us which ones there are. Each keeps its first group. */
const CREDENTIALS: readonly RegExp[] = [
  /\b((?:Bearer|Basic)\s+)(?=\S*\d)[\w.~+/=-]{8,}/gi,
  /\b()(?:sk|pk|rk|e2b|jina|tvly|fc|gsk|hf|ghp|gho|ghs|xai|pplx)[-_](?=[\w-]*\d)[\w-]{12,}/g,
  /\b()(?:AIza[\w-]{20,}|AKIA[A-Z0-9]{12,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)/g,
  /((?:api[-_ ]?key|(?:access|auth|api)[-_]?token|authorization|secret|passw(?:or)?d)["']?\s*[:=]\s*["']?)(?!#\d)[^\s"'&,;)}\]]{4,}/gi,
  /(:\/\/[^\s/:@]*:)[^\s/@]+(?=@)/g,
];

/** The text without anything that looks like a credential. What stands for a key of a gate, `#2…9f3a`, stays. */
export function withoutCredentials(text: string): string {
  let told = text;
  for (const credential of CREDENTIALS) told = told.replace(credential, `$1${MASKED}`);
  return told;
}
