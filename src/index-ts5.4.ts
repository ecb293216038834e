/**
 * The types of the main entry point for TypeScript 5.4 to 5.6 (`types@<5.7` in package.json). Those compilers report
 * "circularly references itself" for the types that `defineTools` has otherwise. With the ones here they infer clients,
 * inputs and results too; they do not find a misspelled option or functions of one tool that do not fit one another, and
 * an input that only `parse` gives is `any` inside the tool.
 */
import type { DefinedTools, Tool } from './tools/define-tools.js';

export * from './index.js';

export declare function defineTools<Clients, Tools>(
  tools: Tools & {
    // biome-ignore lint/suspicious/noExplicitAny: the input that `call` annotates is inferred from `Tools`
    readonly [N in keyof Clients]: Tool<Clients[N], any, unknown>;
  },
): DefinedTools<Tools>;
