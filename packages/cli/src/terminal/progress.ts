import { printCount, printDuration } from '@stillhouse/report';
import cliProgress from 'cli-progress';

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
  /** The speed in words, where `tokens` count something else. */
  readonly printSpeed?: (perSecond: number) => string;
}

export interface ProgressUpdate {
  /** Of `total`, those done before included. */
  readonly done: number;
  /** Speed and time left: counted here from tokens since this process began, or told by who knows better. */
  readonly pace: { readonly tokens: number } | Pace;
  /** Anything else worth seeing, such as the loss. */
  readonly note?: string;
}

export interface Pace {
  readonly tokensPerSecond: number;
  /** null until it can be told. */
  readonly leftMs: number | null;
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
  const { total, startedAt = performance.now(), done = 0, printSpeed = printTokenSpeed } = options;
  const measure = createPaceMeter(total, { time: startedAt, done, tokens: 0 });
  const show =
    stream.isTTY === true ? drawBar(options, stream) : printLines(options, stream, startedAt, lineIntervalMs);
  return {
    update: ({ done: now, pace, note = '' }) => {
      const { tokensPerSecond, leftMs } =
        'tokens' in pace ? measure({ time: performance.now(), done: now, tokens: pace.tokens }) : pace;
      const left = leftMs === null ? 'starting' : `${printDuration(leftMs)} left`;
      show.update(now, printSpeed(tokensPerSecond), left, note);
    },
    stop: show.stop,
  };
}

const printTokenSpeed = (perSecond: number) => `${printCount(perSecond)} tokens/s`;

interface Sample {
  readonly time: number;
  readonly done: number;
  readonly tokens: number;
}

function createPaceMeter(total: number, first: Sample): (now: Sample) => Pace {
  const samples = [first];
  return (now) => {
    samples.push(now);
    while (samples.length > 2 && now.time - samples[1]!.time > WINDOW_MS) samples.shift();
    const { time, done, tokens } = samples[0]!;
    const elapsedMs = Math.max(now.time - time, 1);
    return {
      tokensPerSecond: ((now.tokens - tokens) * 1000) / elapsedMs,
      leftMs: now.done > done ? ((total - now.done) * elapsedMs) / (now.done - done) : null,
    };
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
