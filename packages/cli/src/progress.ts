import cliProgress from 'cli-progress';
import { printCount, printDuration } from './quantities.ts';

export interface ProgressOptions {
  /** What goes on: `train`, `cache build`. */
  readonly label: string;
  /** What is counted: `steps`, `rows`. */
  readonly unit: string;
  readonly total: number;
  /** How many were done before this process began. */
  readonly done?: number;
  /** When the work began, by `performance.now()`; now if not given. */
  readonly startedAt?: number;
}

export interface ProgressUpdate {
  /** Of `total`, those done before included. */
  readonly done: number;
  /** Tokens worked on since this process began. */
  readonly tokens: number;
  /** Anything else worth seeing, such as the loss. */
  readonly note?: string;
}

export interface Progress {
  update(update: ProgressUpdate): void;
  /** Leaves the last state on the screen. May be called again. */
  stop(): void;
}

/** Where progress is written; a terminal gets a bar that moves, anything else a plain line now and then. */
export type ProgressStream = NodeJS.WritableStream & { readonly isTTY?: boolean };

/** Speed is measured over at least so long, and hardly longer, so that it follows what happens now. */
const WINDOW_MS = 30_000;
/** Between two lines where there is no terminal. */
const LINE_INTERVAL_MS = 5_000;

/** Shows how far a piece of work is, with tokens per second and the time left. */
export function openProgress(
  options: ProgressOptions,
  stream: ProgressStream,
  lineIntervalMs = LINE_INTERVAL_MS,
): Progress {
  const { total, startedAt = performance.now(), done = 0 } = options;
  const samples = [{ time: startedAt, done, tokens: 0 }];
  const show =
    stream.isTTY === true ? drawBar(options, stream) : printLines(options, stream, startedAt, lineIntervalMs);
  return {
    update: (update) => {
      const now = performance.now();
      samples.push({ time: now, done: update.done, tokens: update.tokens });
      while (samples.length > 2 && now - samples[1]!.time > WINDOW_MS) samples.shift();
      const { time, done: before, tokens } = samples[0]!;
      const elapsedMs = Math.max(now - time, 1);
      const speed = `${printCount(((update.tokens - tokens) * 1000) / elapsedMs)} tokens/s`;
      const advance = update.done - before;
      const left = advance > 0 ? `${printDuration(((total - update.done) * elapsedMs) / advance)} left` : 'starting';
      show.update(update.done, speed, left, update.note ?? '');
    },
    stop: show.stop,
  };
}

interface ProgressDisplay {
  update(done: number, speed: string, left: string, note: string): void;
  stop(): void;
}

function drawBar({ label, unit, total, done = 0 }: ProgressOptions, stream: ProgressStream): ProgressDisplay {
  const bar = new cliProgress.SingleBar(
    {
      format: `${label} [{bar}] {value}/{total} ${unit} | {speed} | {left} {note}`,
      stream,
      barsize: 24,
      hideCursor: true,
      linewrap: false,
      // It would take the interrupt for itself; main ends the process.
      gracefulExit: false,
    },
    cliProgress.Presets.shades_classic,
  );
  bar.start(total, done, { speed: '', left: 'starting', note: '' });
  return {
    update: (value, speed, left, note) => bar.update(value, { speed, left, note: note === '' ? '' : `| ${note}` }),
    stop: () => bar.stop(),
  };
}

function printLines(
  { label, unit, total }: ProgressOptions,
  stream: ProgressStream,
  startedAt: number,
  intervalMs: number,
): ProgressDisplay {
  let printedAt = startedAt;
  let pending: string | undefined;
  const flush = () => {
    if (pending !== undefined) stream.write(`${pending}\n`);
    pending = undefined;
  };
  return {
    update: (done, speed, left, note) => {
      const parts = [`${label} ${printCount(done)}/${printCount(total)} ${unit}`, speed, left, note];
      pending = parts.filter((part) => part !== '').join(', ');
      const now = performance.now();
      if (now - printedAt < intervalMs) return;
      printedAt = now;
      flush();
    },
    stop: flush,
  };
}
