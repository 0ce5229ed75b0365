import type { CommandContext } from './command-line/command.ts';
import { runCommandLine } from './command-line/run-command-line.ts';
import { describeFailure, EXIT_FAILURE, EXIT_SUCCESS, exitCodeOfSignal } from './failure.ts';
import { openProgress, type Progress } from './terminal/progress.ts';

/**
 * Runs the command line: results go to standard output, everything else to standard error.
 * @param args what follows `stillhouse`
 * @returns the exit code: 0, 1 when the work failed, 2 when the command line is wrong, 130 or 143 when a signal stopped
 *   it
 */
export async function main(args: readonly string[]): Promise<number> {
  const isJson = args.includes('--json');
  const isDebugging = (process.env.STILLHOUSE_DEBUG ?? '') !== '';
  const running = createContext();
  const fail = (error: unknown): number => {
    running.stop();
    const { exitCode, message, document } = describeFailure(error, isDebugging);
    console.error(message);
    if (isJson) console.log(JSON.stringify(document, null, 2));
    return exitCode;
  };
  installHandlers(running, fail);
  try {
    return await runCommandLine(args, running.context);
  } catch (error) {
    return fail(error);
  } finally {
    running.stop();
  }
}

interface Running {
  readonly context: CommandContext;
  stop(): void;
  /** Hands a signal to the command; false where the command has asked for none or had one already. */
  handOver(signal: NodeJS.Signals): boolean;
}

function createContext(): Running {
  let current: Progress | undefined;
  let stopCommand: ((signal: NodeJS.Signals) => void) | undefined;
  return {
    handOver: (signal) => {
      const told = stopCommand;
      stopCommand = undefined;
      told?.(signal);
      return told !== undefined;
    },
    context: {
      onInterrupt: (stop) => {
        stopCommand = stop;
      },
      note: (line) => process.stderr.write(`${line}\n`),
      openProgress: (options) => {
        current?.stop();
        current = openProgress(options, process.stderr);
        return current;
      },
    },
    stop: () => {
      current?.stop();
      current = undefined;
    },
  };
}

function installHandlers({ stop, handOver }: Running, fail: (error: unknown) => number): void {
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.on(signal, () => {
      if (handOver(signal)) return;
      // Whatever is written is either whole or not there, so there is nothing to wait for.
      stop();
      console.error('stillhouse: interrupted [INTERRUPTED]');
      process.exit(exitCodeOfSignal(signal));
    });
  }
  process.on('uncaughtException', (error) => process.exit(fail(error)));
  // A reader such as `head` that has seen enough is no failure.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    process.exit(error.code === 'EPIPE' ? EXIT_SUCCESS : EXIT_FAILURE);
  });
}
