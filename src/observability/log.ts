import { LIFECYCLE_EVENTS, type LifecycleEventName, type LifecycleEvents } from '../hooks/events.js';
import type { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import {
  callable,
  oneOf,
  optional,
  options as readOptions,
  refusal,
  wholeNumber,
} from '../internal/validate.js';
import { Attachment } from './attachment.js';
import { LOG_LINES, type LogLevel } from './log-lines.js';

export type { LogLevel } from './log-lines.js';

const LEVELS: readonly LogLevel[] = ['debug', 'info', 'warn', 'error'];

/** What `logTo` needs of a logger: `console`, pino, bunyan and winston have it. */
export interface Logger {
  debug(first: object | string, message?: string): unknown;
  info(first: object | string, message?: string): unknown;
  warn(first: object | string, message?: string): unknown;
  error(first: object | string, message?: string): unknown;
}

/** Options of `logTo`. */
export interface LogOptions {
  /**
   * Lines below this level are not written; nobody listens to their events, so they cost nothing.
   * @default 'info'
   */
  readonly level?: LogLevel;
  /** Levels other than the usual, event by event; `off` leaves an event out. The table is in docs/observability.md. */
  readonly levels?: Readonly<Partial<Record<LifecycleEventName, LogLevel | 'off'>>>;
  /** For noisy events: write the first and then each n-th. */
  readonly sampleEvery?: Readonly<Partial<Record<LifecycleEventName, number>>>;
  /**
   * `text`: the logger is given the line. `structured`: it is given an object with the event, its ids and durations,
   * and then the same line, as pino takes it; the error, where there is one, is called `err`.
   * @default 'text'
   */
  readonly format?: 'text' | 'structured';
}

/**
 * Writes what happens to a logger: `Concurrency: 3/10 active requests`, `Acquired pipeline instance 2 for task a`,
 * `Released pipeline instance 2 for task a`, and a line for each other event.
 *
 * A logger that throws or rejects changes nothing for any request; it is reported as `hook:error`.
 *
 * @returns a function that ends the writing
 * @throws TypeError or RangeError for a wrong option
 * @example
 * const hooks = new LifecycleHooks();
 * const stop = logTo(hooks, pino(), { format: 'structured', level: 'debug', sampleEvery: { 'call:started': 100 } });
 */
export function logTo(hooks: LifecycleHooks, logger: Logger, options: LogOptions = {}): () => void {
  const attachment = new Attachment(hooks);
  if (typeof logger !== 'object' || logger === null)
    throw new TypeError(refusal('logger', 'a logger', logger));
  for (const level of LEVELS) callable(`logger.${level}`, logger[level]);
  const { levels = {}, sampleEvery = {} } = readOptions('logTo', options, [
    'level',
    'levels',
    'sampleEvery',
    'format',
  ]);
  const threshold = LEVELS.indexOf(optional('level', options.level, levelOf) ?? 'info');
  const structured = optional('format', options.format, formatOf) === 'structured';
  readOptions('levels', levels, LIFECYCLE_EVENTS);
  readOptions('sampleEvery', sampleEvery, LIFECYCLE_EVENTS);
  for (const [event, level] of Object.entries(levels)) oneOf(`levels.${event}`, level, [...LEVELS, 'off']);
  for (const [event, n] of Object.entries(sampleEvery)) wholeNumber(`sampleEvery.${event}`, n);

  const attach = <E extends LifecycleEventName>(event: E): void => {
    const { level: usual, levelOf, text } = LOG_LINES[event];
    const chosen: LogLevel | 'off' | undefined = levels[event];
    const level = chosen ?? usual;
    const varies = chosen === undefined && levelOf !== undefined;
    if (level === 'off' || (!varies && LEVELS.indexOf(level) < threshold)) return;
    const every = sampleEvery[event] ?? 1;
    let heard = 0;
    // What the logger answers is handed back, so that the hooks see a rejection.
    attachment.on(event, (payload) => {
      const own = varies ? levelOf(payload) : level;
      if (LEVELS.indexOf(own) < threshold || heard++ % every !== 0) return undefined;
      const message = text(payload);
      return structured ? logger[own](record(event, payload, every), message) : logger[own](message);
    });
  };
  for (const event of LIFECYCLE_EVENTS) attach(event);
  return () => attachment.detach();
}

function record<E extends LifecycleEventName>(event: E, payload: LifecycleEvents[E], every: number): object {
  const { error, ...rest } = payload as Record<string, unknown>;
  return {
    event,
    ...rest,
    ...(error === undefined ? {} : { err: error }),
    ...(every === 1 ? {} : { sampledEvery: every }),
  };
}

const levelOf = (option: string, value: unknown): LogLevel => oneOf(option, value, LEVELS);
const formatOf = (option: string, value: unknown): 'text' | 'structured' =>
  oneOf(option, value, ['text', 'structured']);
