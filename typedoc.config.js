import { readFileSync } from 'node:fs';

// The entry points are listed once, in tsconfig.json.
const { paths } = JSON.parse(readFileSync(new URL('tsconfig.json', import.meta.url), 'utf8')).compilerOptions;

/** `npm run docs` writes the API reference to docs/api, from the declarations. */
export default {
  name: 'pipeline-pool',
  entryPoints: Object.values(paths).flat(),
  out: 'docs/api',
  readme: 'none',
  excludeInternal: true,
  excludePrivate: true,
  excludeProtected: true,
  disableSources: true,
  treatWarningsAsErrors: true,
  validation: { notExported: false, invalidLink: true, notDocumented: false },
};
