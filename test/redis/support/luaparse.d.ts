/** What is used of it: it has no types of its own. */
declare module 'luaparse' {
  interface Options {
    readonly luaVersion: '5.1';
    readonly scope: true;
    onCreateScope(): void;
    onDestroyScope(): void;
    onLocalDeclaration(name: string): void;
  }
  export function parse(
    text: string,
    options: Options,
  ): { readonly globals: readonly { readonly name: string }[] };
}
