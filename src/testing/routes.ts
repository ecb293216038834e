import type { StubCall, StubReply } from './stub-call.js';

/** One route of a stub service. */
export interface StubRoute {
  readonly method: string;
  /** `:name` stands for one part of the path, a `*` at the end for all the rest. */
  readonly path: string;
  /** Health and metrics: faults befall them only when they are queued for this very route. */
  readonly probe?: boolean;
  readonly answer: (call: StubCall) => StubReply | Promise<StubReply>;
}

/** A route's name, under which its calls are counted. */
export const nameOf = ({ method, path }: StubRoute): string => `${method} ${path}`;

/** The first route that fits, and the parts of the path that stand for something. */
export function findRoute(
  routes: readonly StubRoute[],
  method: string,
  path: string,
): { readonly route: StubRoute | undefined; readonly params: Record<string, string> } {
  for (const route of routes) {
    const params = route.method === method ? paramsOf(route.path, path) : undefined;
    if (params !== undefined) return { route, params };
  }
  return { route: undefined, params: {} };
}

function paramsOf(pattern: string, path: string): Record<string, string> | undefined {
  const params: Record<string, string> = {};
  const expected = pattern.split('/');
  const given = path.split('/');
  for (const [i, part] of expected.entries()) {
    if (part === '*') return given.length > i ? params : undefined;
    const found = given[i];
    if (found === undefined) return undefined;
    if (part.startsWith(':') && found !== '') params[part.slice(1)] = found;
    else if (part !== found) return undefined;
  }
  return given.length === expected.length ? params : undefined;
}
