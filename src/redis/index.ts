export type { IoRedisClient, NodeRedisClient, RedisClient } from './client.js';
export type { FleetLimiter, FleetLimiterStats, FleetRunContext } from './fleet-limiter.js';
export type { FleetLimiterOptions, RedisLimitsOptions, WhenUnavailable } from './options.js';
export { RedisLimits } from './redis-limits.js';
