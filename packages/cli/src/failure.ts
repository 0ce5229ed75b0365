import { constants } from 'node:os';
import { isStillhouseError } from '@stillhouse/errors';
import { nameSources } from './source-places.ts';

export const EXIT_SUCCESS = 0;
export const EXIT_FAILURE = 1;
export const EXIT_USAGE = 2;
/** 128 + the signal's number, as shells report it: 130 for SIGINT, 143 for SIGTERM. */
export function exitCodeOfSignal(signal: NodeJS.Signals): number {
  return 128 + constants.signals[signal];
}

/** Failures of what was typed, not of what was found. */
const USAGE_CODES: ReadonlySet<string> = new Set([
  'SETTING_UNKNOWN',
  'SETTING_INVALID',
  'SETTING_MISSING',
  'SETTING_UNUSED',
  'COMMAND_UNKNOWN',
  'ARGUMENT_UNEXPECTED',
]);

export interface FailureText {
  readonly exitCode: number;
  /** For standard error. */
  readonly message: string;
  /** For standard output with `--json`. */
  readonly document: { readonly error: Readonly<Record<string, unknown>> };
}

/**
 * What to say of an error: `stillhouse: MESSAGE [CODE]` for the ones we foresaw, the whole stack for the others, which
 * are defects.
 * @param isDebugging shows the stack of foreseen errors too
 */
export function describeFailure(error: unknown, isDebugging: boolean): FailureText {
  if (isStillhouseError(error)) {
    const { cause: _, ...report } = error.report;
    const stack = isDebugging ? `\n${stackOf(error)}` : '';
    return {
      exitCode: USAGE_CODES.has(error.code) ? EXIT_USAGE : EXIT_FAILURE,
      message: `stillhouse: ${error.message} [${error.code}]${stack}`,
      document: { error: { message: error.message, ...report } },
    };
  }
  const message = error instanceof Error ? error.message : String(error);
  return {
    exitCode: EXIT_FAILURE,
    message: `stillhouse: this is a defect in stillhouse, please report it [DEFECT]\n${stackOf(error)}`,
    document: { error: { code: 'DEFECT', message, stack: stackOf(error) } },
  };
}

function stackOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const cause = error.cause === undefined ? '' : `\ncaused by ${stackOf(error.cause)}`;
  return `${nameSources(error.stack ?? error.message)}${cause}`;
}
