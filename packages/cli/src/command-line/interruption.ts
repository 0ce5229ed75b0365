import { EXIT_FAILURE, EXIT_SUCCESS, exitCodeOfSignal } from '../failure.ts';
import type { CommandContext } from './command.ts';

/** Work that a first SIGINT or SIGTERM ends well. */
export interface Interruption {
  readonly stopSignal: AbortSignal;
  /** From now on there is something to save: a signal stops the work instead of ending the process. */
  begin(): void;
  /** What the process ends with. @param isWell whether all that was done came out well */
  exitCode(isWell: boolean): number;
}

/** @param command names the work in what is said of the signal */
export function openInterruption(context: CommandContext, command: string): Interruption {
  const stop = new AbortController();
  let stoppedBy: NodeJS.Signals | undefined;
  return {
    stopSignal: stop.signal,
    begin: () =>
      context.onInterrupt((signal) => {
        stoppedBy = signal;
        stop.abort();
        context.note(`${command}: ${signal}, stopping after this step and saving; once more to end at once`);
      }),
    exitCode: (isWell) =>
      stoppedBy !== undefined ? exitCodeOfSignal(stoppedBy) : isWell ? EXIT_SUCCESS : EXIT_FAILURE,
  };
}
