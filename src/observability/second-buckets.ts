/** From a call that a cache answers to a request of half an hour and more, in seconds. */
export const WORK_BUCKETS = [0.05, 0.25, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600, 1_200, 1_800, 3_600];
/** Finer at the beginning, as most waits are none. */
export const WAIT_BUCKETS = [0.005, 0.05, 0.25, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1_800];
