/** Whether the tests that take minutes run at their full size: `SOAK=full`, which `npm run test:full` sets. */
export const isSoak = process.env.SOAK === 'full';

/** How much of `what` a test goes through; a soak prints it. */
export function sizeOf(what: string, usual: number, soak: number): number {
  if (!isSoak) return usual;
  console.info(`soak: ${soak.toLocaleString('en')} ${what}`);
  return soak;
}
