/**
 * Creates errors of one kind at one place, and captures the stack trace once: each error has that of the first. A trace
 * costs 5 µs, which for 10,000 waiters that one call rejects is a step of the event loop of 50 ms.
 */
export function sharedStack<E extends Error>(create: () => E): () => E {
  let stack: string | undefined;
  return () => {
    if (stack === undefined) {
      const first = create();
      stack = first.stack ?? '';
      return first;
    }
    const { stackTraceLimit } = Error;
    // Fails, without harm, where intrinsics are frozen.
    Reflect.set(Error, 'stackTraceLimit', 0);
    try {
      const error = create();
      error.stack = stack;
      return error;
    } finally {
      Reflect.set(Error, 'stackTraceLimit', stackTraceLimit);
    }
  };
}
