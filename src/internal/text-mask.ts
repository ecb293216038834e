/** A text that must not be told. */
export interface Secret {
  readonly text: string;
  /** What stands in its place. */
  readonly label: string;
  /** Whether a short one counts only where it stands by itself: `tide`, and not in `tidewater`. @default false */
  readonly asWord?: boolean;
}

/** Anything shorter is no secret, and hiding it would spoil every text. */
const SHORTEST = 4;
const BLOCK = 8;
/** So many characters of a secret are enough of it to be hidden: wherever they lie in it, they hold a whole block. */
const RUN = 2 * BLOCK - 1;
/** A block that comes more often in a secret says nothing about where in it a text is. */
const MOST_PLACES = 8;

/** One way to write a secret. */
interface Form {
  readonly text: string;
  readonly secret: Secret;
}

interface Place {
  readonly form: Form;
  readonly at: number;
}

interface Find {
  readonly from: number;
  readonly to: number;
  readonly label: string;
}

/** The ways in which clients and servers write a text: as it is, in JSON, in URLs. */
export function formsOf(text: string): readonly string[] {
  const json = JSON.stringify(text).slice(1, -1);
  const ascii = json.replace(/[^ -~]/g, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`);
  const forms = new Set([text, json, ascii]);
  try {
    const component = encodeURIComponent(text);
    forms.add(component).add(encodeURI(text)).add(component.replaceAll('%20', '+'));
  } catch {
    // Half of a surrogate pair cannot stand in a URL.
  }
  return [...forms];
}

/**
 * Hides secrets in texts.
 *
 * Invariants:
 * - Whatever has 15 characters in a row in common with a secret, in any of its forms, is hidden: all that they have in
 *   common. So a secret that was cut, or wrapped, is found as well. A shorter one is hidden where it is there as a whole.
 * - How long it takes depends on the text, and not on how many secrets there are.
 */
export class TextMask {
  readonly #whole = new Map<string, Secret>();
  readonly #lengths = new Set<number>();
  readonly #blocks = new Map<string, Place[]>();

  constructor(secrets: Iterable<Secret>) {
    for (const secret of secrets) {
      if (secret.text.length >= SHORTEST)
        for (const text of formsOf(secret.text)) this.#add({ text, secret });
    }
  }

  /** The text without the secrets. */
  text(text: string): string {
    const finds = [...this.#findWhole(text), ...this.#findRuns(text)];
    if (finds.length === 0) return text;
    finds.sort((a, b) => a.from - b.from || b.to - a.to);
    let told = '';
    let done = 0;
    for (const { from, to, label } of finds) {
      if (from >= done) told += text.slice(done, from) + label;
      done = Math.max(done, to);
    }
    return told + text.slice(done);
  }

  #add(form: Form): void {
    const { text, secret } = form;
    if (text.length < RUN) {
      this.#whole.set(text, secret);
      this.#lengths.add(text.length);
      return;
    }
    for (let at = 0; at + BLOCK <= text.length; at += BLOCK) {
      const block = text.slice(at, at + BLOCK);
      // A row of blanks or dashes is everybody's.
      if (/^(.)\1*$/s.test(block)) continue;
      const places = this.#blocks.get(block);
      if (places === undefined) this.#blocks.set(block, [{ form, at }]);
      else if (places.length < MOST_PLACES) places.push({ form, at });
    }
  }

  *#findWhole(text: string): Iterable<Find> {
    for (const length of this.#lengths) {
      for (let from = 0; from + length <= text.length; from++) {
        const secret = this.#whole.get(text.slice(from, from + length));
        const to = from + length;
        if (secret !== undefined && !(secret.asWord && isInWord(text, from, to)))
          yield { from, to, label: secret.label };
      }
    }
  }

  *#findRuns(text: string): Iterable<Find> {
    if (this.#blocks.size === 0) return;
    for (let i = 0; i + BLOCK <= text.length; i++) {
      const places = this.#blocks.get(text.slice(i, i + BLOCK));
      if (places === undefined) continue;
      // Of several that are as long, the first is the label: a secret that is there as a whole.
      const runs = places.map((place) => runAt(text, i, place)).filter(({ from, to }) => to - from >= RUN);
      runs.sort((a, b) => Number(b.isWhole) - Number(a.isWhole));
      yield* runs;
    }
  }
}

/** All that a text and a form have in common around a place where they are the same. */
function runAt(text: string, i: number, { form, at }: Place): Find & { readonly isWhole: boolean } {
  const secret = form.text;
  let before = 0;
  while (before < at && before < i && text[i - before - 1] === secret[at - before - 1]) before++;
  let after = BLOCK;
  while (at + after < secret.length && i + after < text.length && text[i + after] === secret[at + after])
    after++;
  return {
    from: i - before,
    to: i + after,
    label: form.secret.label,
    isWhole: before + after === secret.length,
  };
}

/** Whether letters or digits go on before or after a part of a text. An escape before it is none. */
function isInWord(text: string, from: number, to: number): boolean {
  const before = text.slice(Math.max(0, from - 3), from);
  return (
    (/[A-Za-z0-9]$/.test(before) && !/(%[0-9A-Fa-f]{2}|\\[bfnrt])$/.test(before)) ||
    /^[A-Za-z0-9]/.test(text.slice(to, to + 1))
  );
}
