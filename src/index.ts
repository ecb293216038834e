export * from './errors.js';
export type * from './hooks/events.js';
export { LIFECYCLE_EVENTS } from './hooks/events.js';
export { LifecycleHooks, type LifecycleListener } from './hooks/lifecycle-hooks.js';
export { AdaptiveLimit } from './limiter/adaptive-limit.js';
export { ConcurrencyLimiter } from './limiter/concurrency-limiter.js';
export type * from './limiter/limiter.js';
export type { ConcurrencyLimiterOptions } from './limiter/limiter-options.js';
