/**
 * Settles as `work` does, or rejects with what `onDeadline` makes when the time is up first. The timer is gone as soon
 * as it is settled. Without `timeoutMs` it is `work` itself.
 */
export function withDeadline<T>(
  work: Promise<T>,
  timeoutMs: number | undefined,
  onDeadline: (timeoutMs: number) => Error,
): Promise<T> {
  if (timeoutMs === undefined) return work;
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(onDeadline(timeoutMs)), timeoutMs);
    work.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}
