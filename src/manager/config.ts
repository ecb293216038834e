import { availableParallelism, totalmem } from 'node:os';
import { durationMs, finiteNumber, options, refusal, wholeNumber } from '../internal/validate.js';

/** What a manager is built from. */
export interface PipelineConfig {
  /** Instances alive at once at most. @default 5 */
  readonly poolSize: number;
  /** Requests admitted at once at most. @default 10 */
  readonly maxConcurrentRequests: number;
  /** Requests that may wait to be admitted; the next is turned away. @default none */
  readonly maxQueue?: number;
  /** Milliseconds a request waits at most to be admitted. @default none */
  readonly queueTimeoutMs?: number;
  /** Milliseconds a whole request may take, waiting included. @default none */
  readonly requestTimeoutMs?: number;
  /** Milliseconds that code which ignores its aborted signal may go on before its instance is torn down. @default 5,000 */
  readonly abortGraceMs?: number;
}

/** Settings known to suit: a light, a usual and a heavy service, and a machine with little memory. */
export const PRESETS = Object.freeze({
  light: Object.freeze({ poolSize: 3, maxConcurrentRequests: 5 }),
  medium: Object.freeze({ poolSize: 5, maxConcurrentRequests: 10 }),
  heavy: Object.freeze({ poolSize: 10, maxConcurrentRequests: 20 }),
  constrained: Object.freeze({ poolSize: 2, maxConcurrentRequests: 3 }),
}) satisfies Readonly<Record<string, PipelineConfig>>;

/** The environment variable behind each setting. */
export const CONFIG_VARIABLES = Object.freeze({
  poolSize: 'PIPELINE_POOL_SIZE',
  maxConcurrentRequests: 'MAX_CONCURRENT_REQUESTS',
  maxQueue: 'PIPELINE_MAX_QUEUE',
  queueTimeoutMs: 'PIPELINE_QUEUE_TIMEOUT_MS',
  requestTimeoutMs: 'PIPELINE_REQUEST_TIMEOUT_MS',
  abortGraceMs: 'PIPELINE_ABORT_GRACE_MS',
}) satisfies Readonly<Record<keyof PipelineConfig, string>>;

const CHECKS = {
  poolSize: (name, value) => wholeNumber(name, value),
  maxConcurrentRequests: (name, value) => wholeNumber(name, value),
  maxQueue: (name, value) => wholeNumber(name, value, 0),
  queueTimeoutMs: (name, value) => durationMs(name, value),
  requestTimeoutMs: (name, value) => durationMs(name, value, 1),
  abortGraceMs: (name, value) => durationMs(name, value),
} satisfies Record<keyof PipelineConfig, (name: string, value: unknown) => number>;

const SETTINGS = Object.keys(CHECKS) as (keyof PipelineConfig)[];

/**
 * Reads the settings from the environment. A variable that is missing or empty leaves its default.
 *
 * @throws {RangeError} naming the variable and its value, where that is no whole number in range
 *
 * @example
 * loadConfig({ PIPELINE_POOL_SIZE: '8' }); // { poolSize: 8, maxConcurrentRequests: 10 }
 */
export function loadConfig(env: Readonly<Record<string, string | undefined>> = process.env): PipelineConfig {
  const config: { -readonly [S in keyof PipelineConfig]: PipelineConfig[S] } = { ...PRESETS.medium };
  for (const setting of SETTINGS) {
    const variable = CONFIG_VARIABLES[setting];
    const written = env[variable]?.trim();
    if (written === undefined || written === '') continue;
    // Number('') is 0 and Number('0x10') is 16: only what reads as a plain number counts.
    if (!/^\d+$/.test(written)) throw new RangeError(refusal(variable, 'a whole number', written));
    config[setting] = CHECKS[setting](variable, Number(written));
  }
  return Object.freeze(config);
}

/** Refuses a wrong configuration, naming the setting and its value. */
export function validConfig(given: PipelineConfig): PipelineConfig {
  options('config', given, SETTINGS);
  for (const setting of SETTINGS) {
    const value = given[setting];
    if (value !== undefined || setting === 'poolSize' || setting === 'maxConcurrentRequests') {
      CHECKS[setting](setting, value);
    }
  }
  return given;
}

/** A setting that works, but probably not as intended. */
export interface ConfigWarning {
  readonly code: 'fewer-requests-than-instances' | 'more-instances-than-cores' | 'more-instances-than-memory';
  /** What is unwise, and what to do. */
  readonly message: string;
}

/** The machine that a configuration is for. */
export interface Machine {
  /** @default what this process may use */
  readonly cores?: number;
  /** @default what this process may use, a container's limit included */
  readonly memoryBytes?: number;
  /** What one instance takes. @default 0.5 GB, the lower end of what pipelines of agents take */
  readonly instanceBytes?: number;
}

const GB = 1024 ** 3;

/**
 * Looks for settings that are allowed but unwise. Empty means that nothing was found.
 *
 * @example
 * for (const { message } of checkConfig(loadConfig())) console.warn(message);
 */
export function checkConfig(config: PipelineConfig, machine: Machine = {}): readonly ConfigWarning[] {
  const { poolSize, maxConcurrentRequests } = validConfig(config);
  options('machine', machine, ['cores', 'memoryBytes', 'instanceBytes']);
  const cores = wholeNumber('cores', machine.cores ?? availableParallelism());
  const memoryBytes = finiteNumber(
    'memoryBytes',
    machine.memoryBytes ?? memoryOfProcess(),
    1,
    Number.MAX_VALUE,
  );
  const instanceBytes = finiteNumber('instanceBytes', machine.instanceBytes ?? GB / 2, 1, Number.MAX_VALUE);
  const warnings: ConfigWarning[] = [];
  if (maxConcurrentRequests < poolSize) {
    warnings.push({
      code: 'fewer-requests-than-instances',
      message: `Only ${maxConcurrentRequests} requests are admitted at once: ${poolSize - maxConcurrentRequests} of ${poolSize} instances will never be used. Raise ${CONFIG_VARIABLES.maxConcurrentRequests} or lower ${CONFIG_VARIABLES.poolSize}.`,
    });
  }
  if (poolSize > 2 * cores) {
    warnings.push({
      code: 'more-instances-than-cores',
      message: `${poolSize} instances on ${cores} cores: more than two each slow one another down wherever they compute. Lower ${CONFIG_VARIABLES.poolSize} to ${2 * cores}.`,
    });
  }
  const fitting = Math.floor(memoryBytes / instanceBytes);
  if (poolSize > fitting) {
    warnings.push({
      code: 'more-instances-than-memory',
      message: `${poolSize} instances need ${inGb(poolSize * instanceBytes)} to ${inGb(2 * poolSize * instanceBytes)} GB, and ${inGb(memoryBytes)} GB are there. Lower ${CONFIG_VARIABLES.poolSize} to ${Math.max(1, fitting)}.`,
    });
  }
  return warnings;
}

const inGb = (bytes: number): string => (bytes / GB).toFixed(1);

/** What the process may use, a container's limit included. */
export function memoryOfProcess(): number {
  // 0 where no limit is set, or not known.
  const limit = process.constrainedMemory?.() ?? 0;
  return limit > 0 ? Math.min(limit, totalmem()) : totalmem();
}
