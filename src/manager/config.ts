import {
  type Checks,
  checkEach,
  durationMs,
  finiteNumber,
  fromZero,
  options,
  positiveMs,
  refusal,
  wholeNumber,
} from '../internal/validate.js';

/** The sizes and time limits of a manager. */
export interface PipelineConfig {
  /** The most instances that are alive at once. @default 5 */
  readonly poolSize: number;
  /** The most requests that are admitted at once. @default 10 */
  readonly maxConcurrentRequests: number;
  /** The most requests that wait for admission; the next is rejected. @default unlimited */
  readonly maxQueue?: number | undefined;
  /** Milliseconds that a request waits for admission at most. @default unlimited */
  readonly acquireTimeoutMs?: number | undefined;
  /** Milliseconds that a whole request may take, queueing included. @default unlimited */
  readonly requestTimeoutMs?: number | undefined;
  /** Milliseconds for which code may ignore its aborted signal before its instance is destroyed. @default 5000 */
  readonly abortGraceMs?: number | undefined;
}

/** Settings for a light, a usual and a heavy service, and for a machine with little memory. */
export const PRESETS = /* @__PURE__ */ Object.freeze({
  light: /* @__PURE__ */ Object.freeze({ poolSize: 3, maxConcurrentRequests: 5 }),
  medium: /* @__PURE__ */ Object.freeze({ poolSize: 5, maxConcurrentRequests: 10 }),
  heavy: /* @__PURE__ */ Object.freeze({ poolSize: 10, maxConcurrentRequests: 20 }),
  constrained: /* @__PURE__ */ Object.freeze({ poolSize: 2, maxConcurrentRequests: 3 }),
}) satisfies Readonly<Record<string, PipelineConfig>>;

/** The environment variable behind each setting. */
export const CONFIG_VARIABLES = /* @__PURE__ */ Object.freeze({
  poolSize: 'PIPELINE_POOL_SIZE',
  maxConcurrentRequests: 'MAX_CONCURRENT_REQUESTS',
  maxQueue: 'PIPELINE_MAX_QUEUE',
  acquireTimeoutMs: 'PIPELINE_QUEUE_TIMEOUT_MS',
  requestTimeoutMs: 'PIPELINE_REQUEST_TIMEOUT_MS',
  abortGraceMs: 'PIPELINE_ABORT_GRACE_MS',
}) satisfies Readonly<Record<keyof PipelineConfig, string>>;

const CHECKS = {
  poolSize: wholeNumber,
  maxConcurrentRequests: wholeNumber,
  maxQueue: fromZero,
  acquireTimeoutMs: durationMs,
  requestTimeoutMs: positiveMs,
  abortGraceMs: durationMs,
} satisfies Checks<PipelineConfig>;

/**
 * Reads the settings from the environment. A missing or empty variable leaves the default.
 *
 * @throws {RangeError} naming the variable and its value, if it is not an integer in range
 *
 * @example
 * loadConfig({ PIPELINE_POOL_SIZE: '8' }); // { poolSize: 8, maxConcurrentRequests: 10 }
 */
export function loadConfig(env: Readonly<Record<string, string | undefined>> = process.env): PipelineConfig {
  return completeConfig({}, env);
}

/** The given settings, checked; what they omit is read from the environment. */
export function completeConfig(
  given: Partial<PipelineConfig>,
  env: Readonly<Record<string, string | undefined>> = process.env,
): PipelineConfig {
  checkEach('config', given, CHECKS);
  const config: { -readonly [S in keyof PipelineConfig]: PipelineConfig[S] } = { ...PRESETS.medium };
  for (const setting of Object.keys(CHECKS) as (keyof PipelineConfig)[]) {
    const value = given[setting] ?? fromEnvironment(setting, env);
    if (value !== undefined) config[setting] = value;
  }
  return Object.freeze(config);
}

function fromEnvironment(
  setting: keyof PipelineConfig,
  env: Readonly<Record<string, string | undefined>>,
): number | undefined {
  const variable = CONFIG_VARIABLES[setting];
  const written = env[variable]?.trim() ?? '';
  if (written === '') return undefined;
  // Number('0x10') is 16: only a plain decimal number counts.
  if (!/^\d+$/.test(written)) throw new RangeError(refusal(variable, 'a whole number', written));
  const value = Number(written);
  CHECKS[setting](variable, value);
  return value;
}

/** A setting that is allowed but unwise. */
export interface ConfigWarning {
  readonly code: 'fewer-requests-than-instances' | 'more-instances-than-cores' | 'more-instances-than-memory';
  /** What is unwise, and the remedy. */
  readonly message: string;
}

/** The machine that a configuration is for. */
export interface Machine {
  /** CPU cores. @default those available to this process */
  readonly cores?: number | undefined;
  /** Bytes of memory. @default those available to this process, a container's limit included */
  readonly memoryBytes?: number | undefined;
  /** Bytes that one instance takes. @default 0.5 GB, the lower end for agent pipelines */
  readonly instanceBytes?: number | undefined;
}

const GB = 1_073_741_824;

/**
 * Finds settings that are allowed but unwise. An empty array means that there are none.
 *
 * @throws {TypeError | RangeError} naming the setting that is wrong, and its value
 *
 * @example
 * for (const { message } of checkConfig(loadConfig())) console.warn(message);
 */
export function checkConfig(config: PipelineConfig, machine: Machine = {}): readonly ConfigWarning[] {
  const { poolSize, maxConcurrentRequests } = completeConfig(config, {});
  // Whole as it is given: the defaults must not fill in what is missing.
  for (const required of ['poolSize', 'maxConcurrentRequests'] as const)
    CHECKS[required](required, config[required]);
  options('machine', machine, ['cores', 'memoryBytes', 'instanceBytes']);
  const cores = wholeNumber('cores', machine.cores ?? os().availableParallelism());
  const memoryBytes = finiteNumber(
    'memoryBytes',
    machine.memoryBytes ?? memoryOfProcess(),
    1,
    Number.MAX_VALUE,
  );
  const instanceBytes = finiteNumber('instanceBytes', machine.instanceBytes ?? GB / 2, 1, Number.MAX_VALUE);
  const warnings: ConfigWarning[] = [];
  const warn = (code: ConfigWarning['code'], message: string): void => {
    warnings.push({ code, message });
  };
  if (maxConcurrentRequests < poolSize)
    warn(
      'fewer-requests-than-instances',
      `Only ${maxConcurrentRequests} requests are admitted at once: ${poolSize - maxConcurrentRequests} of ${poolSize} instances will never be used. Raise ${CONFIG_VARIABLES.maxConcurrentRequests} or lower ${CONFIG_VARIABLES.poolSize}.`,
    );
  if (poolSize > 2 * cores)
    warn(
      'more-instances-than-cores',
      `${poolSize} instances on ${cores} cores: with more than two per core they slow one another down. Lower ${CONFIG_VARIABLES.poolSize} to ${2 * cores}.`,
    );
  const fitting = Math.floor(memoryBytes / instanceBytes);
  if (poolSize > fitting)
    warn(
      'more-instances-than-memory',
      `${poolSize} instances need ${inGb(poolSize * instanceBytes)} to ${inGb(2 * poolSize * instanceBytes)} GB, and ${inGb(memoryBytes)} GB are available. Lower ${CONFIG_VARIABLES.poolSize} to ${Math.max(1, fitting)}.`,
    );
  return warnings;
}

/** Loaded when it is first used. */
const os = () => process.getBuiltinModule('node:os');

const inGb = (bytes: number): string => (bytes / GB).toFixed(1);

/** Bytes of memory that the process may use, a container's limit included. */
export function memoryOfProcess(): number {
  // 0 if no limit is set or known.
  const limit = process.constrainedMemory?.() ?? 0;
  const total = os().totalmem();
  return limit > 0 ? Math.min(limit, total) : total;
}
