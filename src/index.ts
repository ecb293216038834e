export * from './errors.js';
export type * from './hooks/events.js';
export { LIFECYCLE_EVENTS } from './hooks/events.js';
export { LifecycleHooks, type LifecycleListener } from './hooks/lifecycle-hooks.js';
export type * from './limiter/limiter.js';
