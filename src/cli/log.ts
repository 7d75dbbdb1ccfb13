/**
 * The daemon's log: one line an entry on stderr, for people (`text`) or for programs (`json`).
 */
import { pino } from 'pino';

export type LogFormat = 'text' | 'json';
export type LogLevel = 'debug' | 'info' | 'warn' | 'error';

export interface LogLine {
  readonly level: LogLevel;
  readonly message: string;
  readonly [field: string]: unknown;
}

export type Log = (line: LogLine) => void;

/** Makes the log of the daemon `name`; entries below `level` are dropped. */
export function createLog(name: string, format: LogFormat, level: LogLevel = 'info'): Log {
  const sink = { write: (line: string) => void process.stderr.write(format === 'json' ? line : readable(line)) };
  const logger = pino(
    {
      level,
      base: { name },
      messageKey: 'message',
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    sink,
  );
  return ({ level: of, message, ...fields }) => logger[of](fields, message);
}

/** `12:00:01.123 north  message  key=value ...`: what is not an ordinary entry says its level. */
function readable(line: string): string {
  const { time, level, name, message, ...fields } = JSON.parse(line) as Record<string, unknown>;
  const clock = String(time).slice(11, 23);
  const marked = level === 'info' ? '' : ` ${String(level)}:`;
  const rest = Object.entries(fields).map(
    ([key, value]) => `  ${key}=${typeof value === 'string' ? value : JSON.stringify(value)}`,
  );
  return `${clock} ${String(name)}${marked} ${String(message)}${rest.join('')}\n`;
}
