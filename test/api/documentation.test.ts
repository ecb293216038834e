import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import ts from 'typescript';
import { describe, expect, it } from 'vitest';

const { config } = ts.readConfigFile('tsconfig.json', ts.sys.readFile);
const { options } = ts.convertCompilerOptionsFromJson(config.compilerOptions, process.cwd());
const { paths } = JSON.parse(readFileSync('tsconfig.json', 'utf8')).compilerOptions as {
  paths: Record<string, [string]>;
};
const entries = Object.entries(paths).map(([name, [file]]) => ({ name, file: resolve(file) }));
const program = ts.createProgram(
  entries.map(({ file }) => file),
  options,
);
const checker = program.getTypeChecker();

const isInternal = (symbol: ts.Symbol): boolean => tagsOf(symbol).has('internal');
const tagsOf = (symbol: ts.Symbol): Set<string> =>
  new Set(symbol.getJsDocTags(checker).map(({ name }) => name));
const textOf = (symbol: ts.Symbol): string =>
  ts.displayPartsToString(symbol.getDocumentationComment(checker)) +
  symbol
    .getJsDocTags(checker)
    .map(({ name, text }) => ` @${name} ${ts.displayPartsToString(text)}`)
    .join('');

/** What an entry exports: the symbols themselves, not the aliases that re-export them. */
function exportsOf(file: string): ts.Symbol[] {
  const source = checker.getSymbolAtLocation(program.getSourceFile(file)!)!;
  return checker
    .getExportsOfModule(source)
    .map((symbol) => (symbol.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(symbol) : symbol))
    .filter((symbol) => !isInternal(symbol));
}

/** The members that are public and declared here, not in a library. */
function membersOf(symbol: ts.Symbol): ts.Symbol[] {
  if (!(symbol.flags & (ts.SymbolFlags.Class | ts.SymbolFlags.Interface))) return [];
  return [...(symbol.members?.values() ?? [])].filter((member) => {
    const [declaration] = member.declarations ?? [];
    return (
      declaration !== undefined &&
      !ts.isPrivateIdentifier((declaration as ts.NamedDeclaration).name ?? declaration) &&
      member.flags & (ts.SymbolFlags.Property | ts.SymbolFlags.Method | ts.SymbolFlags.Accessor) &&
      !(ts.getCombinedModifierFlags(declaration) & (ts.ModifierFlags.Private | ts.ModifierFlags.Protected)) &&
      !member.name.startsWith('__#') &&
      !isInternal(member)
    );
  });
}

const isError = (symbol: ts.Symbol): boolean => /Error$/.test(symbol.name);
const isOptions = (symbol: ts.Symbol): boolean => /Options$/.test(symbol.name);
const isOptional = (symbol: ts.Symbol): boolean => (symbol.flags & ts.SymbolFlags.Optional) !== 0;

describe.each(entries)('the declarations of $name', ({ file }) => {
  const symbols = exportsOf(file);

  it('have a description for every export', () => {
    expect(symbols.filter((symbol) => textOf(symbol).length < 10).map(({ name }) => name)).toEqual([]);
  });

  it('have an example for every class and function', () => {
    const without = symbols.filter(
      (symbol) =>
        symbol.flags & (ts.SymbolFlags.Class | ts.SymbolFlags.Function) &&
        !isError(symbol) &&
        !tagsOf(symbol).has('example'),
    );
    expect(without.map(({ name }) => name)).toEqual([]);
  });

  it('have a description for every member of a class, and of every option', () => {
    const without = symbols
      .filter((symbol) => symbol.flags & ts.SymbolFlags.Class || isOptions(symbol))
      .flatMap((symbol) =>
        membersOf(symbol)
          .filter((member) => textOf(member).length < 8)
          .map((member) => `${symbol.name}.${member.name}`),
      );
    expect(without).toEqual([]);
  });

  it('have the default of every optional option', () => {
    const without = symbols.filter(isOptions).flatMap((symbol) =>
      membersOf(symbol)
        .filter((member) => isOptional(member) && !/default|without it|absent|unless/i.test(textOf(member)))
        .map((member) => `${symbol.name}.${member.name}`),
    );
    expect(without).toEqual([]);
  });
});
