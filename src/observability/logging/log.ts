/**
 * Writes lifecycle events to a logger. `log.ts` has `logTo` and its options, `log-lines.ts` the line and the default level
 * of each event.
 */

import { Attachment } from '../../hooks/attachment.js';
import { LIFECYCLE_EVENTS, type LifecycleEventName, type LifecycleEvents } from '../../hooks/events.js';
import type { LifecycleHooks } from '../../hooks/lifecycle-hooks.js';
import { enableRedaction } from '../../internal/redaction.js';
import { callable, oneOf, options as readOptions, refusal, wholeNumber } from '../../internal/validate.js';
import {
  defaultLevelOf,
  HIGHEST_BY_PAYLOAD,
  LEVEL_BY_PAYLOAD,
  LOG_LINES,
  type LogLevel,
} from './log-lines.js';

export type { LogLevel } from './log-lines.js';

const LEVELS: readonly LogLevel[] = ['debug', 'info', 'warn', 'error'];

/** The methods that `logTo` calls. `console`, pino, bunyan and winston have them. */
export interface Logger {
  debug(first: object | string, message?: string): unknown;
  info(first: object | string, message?: string): unknown;
  warn(first: object | string, message?: string): unknown;
  error(first: object | string, message?: string): unknown;
}

/** What `logTo` writes, and how. */
export interface LogOptions {
  /**
   * The lowest level written. Events below it get no listener, so they cost nothing.
   * @default 'info'
   */
  readonly level?: LogLevel | undefined;
  /** Overrides the level of single events; `off` omits an event. Defaults: see the table in docs/observability.md. */
  readonly levels?: Readonly<Partial<Record<LifecycleEventName, LogLevel | 'off'>>> | undefined;
  /** For frequent events: writes the first and then every n-th. @default every event */
  readonly sampleEvery?: Readonly<Partial<Record<LifecycleEventName, number>>> | undefined;
  /**
   * `text`: calls the logger with the line. `structured`: calls it with an object (the event's name and payload, its
   * error as `err`) and the line, the argument order of pino.
   * @default 'text'
   */
  readonly format?: 'text' | 'structured' | undefined;
}

/**
 * Writes a log line for each lifecycle event, for example `Concurrency: 3/10 active requests`,
 * `Acquired pipeline instance 2 for task a` and `Released pipeline instance 2 for task a`.
 *
 * A logger that throws or rejects never affects a request; the failure is reported as `hook:error`.
 *
 * @returns a function that removes all listeners
 * @throws {TypeError | RangeError} for an invalid option, naming the option and the value
 * @example
 * const hooks = new LifecycleHooks();
 * const stop = logTo(hooks, pino(), { format: 'structured', level: 'debug', sampleEvery: { 'call:started': 100 } });
 */
export function logTo(hooks: LifecycleHooks, logger: Logger, options: LogOptions = {}): () => void {
  const attachment = new Attachment(hooks);
  enableRedaction();
  if (typeof logger !== 'object' || logger === null)
    throw new TypeError(refusal('logger', 'a logger', logger));
  for (const level of LEVELS) callable(`logger.${level}`, logger[level]);
  readOptions('logTo', options, ['level', 'levels', 'sampleEvery', 'format']);
  const { level: lowest = 'info', levels = {}, sampleEvery = {}, format = 'text' } = options;
  const threshold = LEVELS.indexOf(oneOf('level', lowest, LEVELS));
  const structured = oneOf('format', format, ['text', 'structured']) === 'structured';
  readOptions('levels', levels, LIFECYCLE_EVENTS);
  readOptions('sampleEvery', sampleEvery, LIFECYCLE_EVENTS);
  for (const [event, level] of Object.entries(levels)) oneOf(`levels.${event}`, level, [...LEVELS, 'off']);
  for (const [event, n] of Object.entries(sampleEvery)) wholeNumber(`sampleEvery.${event}`, n);

  const attach = <E extends LifecycleEventName>(event: E): void => {
    const chosen: LogLevel | 'off' | undefined = levels[event];
    const level = chosen ?? defaultLevelOf(event);
    const levelOf = chosen === undefined ? LEVEL_BY_PAYLOAD[event] : undefined;
    const highest = levelOf === undefined ? level : HIGHEST_BY_PAYLOAD;
    if (highest === 'off' || LEVELS.indexOf(highest) < threshold) return;
    const every = sampleEvery[event] ?? 1;
    let seen = 0;
    // The logger's result is returned so that the hooks catch a rejection.
    attachment.on(event, (payload) => {
      const own = levelOf?.(payload) ?? (level as LogLevel);
      if (LEVELS.indexOf(own) < threshold || seen++ % every !== 0) return undefined;
      const message = LOG_LINES[event](payload);
      return structured ? logger[own](record(event, payload, every), message) : logger[own](message);
    });
  };
  for (const event of LIFECYCLE_EVENTS) attach(event);
  return () => attachment.detach();
}

function record<E extends LifecycleEventName>(event: E, payload: LifecycleEvents[E], every: number): object {
  const { error, event: failedEvent, ...fields } = payload as Record<string, unknown>;
  return {
    event,
    // The payload of `hook:error` has an event of its own.
    ...(failedEvent === undefined ? {} : { failedEvent }),
    ...fields,
    ...(error === undefined ? {} : { err: error }),
    ...(every === 1 ? {} : { sampledEvery: every }),
  };
}
