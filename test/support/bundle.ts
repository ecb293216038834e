import { type BuildOptions, buildSync } from 'esbuild';

/** Bundles a TypeScript program for Node.js, which would take a second to compile each time that it starts. */
export function bundleForNode(entry: string, outfile: string, options: BuildOptions): void {
  buildSync({
    entryPoints: [entry],
    outfile,
    bundle: true,
    format: 'esm',
    platform: 'node',
    target: 'node20',
    logLevel: 'error',
    ...options,
  });
}
