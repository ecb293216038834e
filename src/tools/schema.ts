import { synchronous } from '../internal/validate.js';

/** A JSON schema. */
export type JsonSchema = Readonly<Record<string, unknown>>;

/** A wrong value, as a schema reports it. */
interface Issue {
  readonly message: string;
  readonly path?: readonly (PropertyKey | { readonly key: PropertyKey })[] | undefined;
}

type Validated<Output> =
  | { readonly value: Output; readonly issues?: undefined }
  | { readonly issues: readonly Issue[] };

/**
 * A schema of any library that implements Standard Schema 1 (https://standardschema.dev): zod, valibot, arktype and others.
 *
 * @example
 * const schema: StandardSchema<{ query: string }> = z.object({ query: z.string() });
 */
export interface StandardSchema<Output = unknown> {
  /** What the standard defines. */
  readonly '~standard': {
    readonly version: 1;
    readonly vendor: string;
    readonly validate: (value: unknown) => Validated<Output> | Promise<Validated<Output>>;
    readonly types?: { readonly input: unknown; readonly output: Output } | undefined;
    /** Standard JSON Schema: the input as a JSON schema. Libraries that lack it need an `inputSchema` beside the schema. */
    readonly jsonSchema?: { readonly input: (options: { readonly target: string }) => object } | undefined;
  };
}

/** How many issues the agent reads; the first ones usually explain the rest. */
const MAX_ISSUES = 5;

/**
 * The value that a schema makes of what a model sent.
 *
 * @throws {TypeError} naming what is wrong, for the model; or because the schema validates asynchronously
 */
export function validated<Output>(name: string, schema: StandardSchema<Output>, given: unknown): Output {
  const result = synchronous(`${name}.schema`, schema['~standard'].validate(given)) as Validated<Output>;
  if (result.issues === undefined) return result.value;
  throw new TypeError(result.issues.slice(0, MAX_ISSUES).map(issueText).join('; '));
}

function issueText({ message, path = [] }: Issue): string {
  const keys = path.map((part) => String(typeof part === 'object' ? part.key : part));
  return keys.length === 0 ? message : `${keys.join('.')}: ${message}`;
}

/** The JSON schema of a schema's input; `undefined` where the library, or this schema, cannot express it. */
export function jsonSchemaOf(schema: StandardSchema): JsonSchema | undefined {
  try {
    return schema['~standard'].jsonSchema?.input({ target: 'draft-2020-12' }) as JsonSchema | undefined;
  } catch {
    return undefined;
  }
}
