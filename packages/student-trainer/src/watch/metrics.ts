import { type FileHandle, open, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { explainWriteFailure, writeFileAtomically } from '@stillhouse/durable-files';
import { featureName, type Objective } from '@stillhouse/objectives';
import { type PairedStates, statesOf } from '../settings/layer-pairs.ts';
import type { LossSums } from '../step/micro-batch.ts';

/** One line of metrics.jsonl. Losses are means over the step's target tokens, by weight, in nats. */
export interface StepMetrics {
  readonly step: number;
  /** Its stage, where the run has stages; steps are counted over all of them. */
  readonly stage?: string;
  /** alpha T² KL + (1 - alpha) CE + hiddenWeight hidden + attentionWeight attention. */
  readonly loss: number;
  /** The divergence at temperature T, without T²; 0 without soft labels. */
  readonly kl: number;
  readonly ce: number;
  /** Mean distance over the pairs of hidden states that are matched; 0 without any. */
  readonly hidden: number;
  /** The same over the pairs of attention outputs, where any are matched. */
  readonly attention?: number;
  /**
   * The distance of each pair, by its name as in `6:7` or `attention.3:attention.5`, where others than the final states
   * are matched.
   */
  readonly pairs?: Readonly<Record<string, number>>;
  readonly lr: number;
  /** T and alpha of this step, where a schedule changes them. */
  readonly temperature?: number;
  readonly alpha?: number;
  /** Global gradient norm before clipping. */
  readonly gradNorm: number;
  readonly tokens: number;
  /** Share of the positions that were computed which hold no token. */
  readonly paddingShare: number;
  readonly targetTokens: number;
  /** Tokens since the run began. */
  readonly tokensSeen: number;
  /** How long the step waited for its labels to be read. */
  readonly dataWaitMs: number;
  /** Time in steps since the run began, interruptions left out. */
  readonly elapsedMs: number;
}

/** The losses of a line from the sums of a step. */
export function describeSums(
  { loss, kl, ce, features: distances }: LossSums,
  { features = [] }: Pick<Objective, 'features'>,
): Pick<StepMetrics, 'loss' | 'kl' | 'ce' | 'hidden' | 'attention' | 'pairs'> {
  const names = features.map(featureName);
  const mean = (states: PairedStates) => {
    const of = distances.filter((_, i) => statesOf(features[i]!) === states);
    return of.length === 0 ? undefined : of.reduce((sum, one) => sum + one, 0) / of.length;
  };
  const attention = mean('attention');
  const isPlain = names.length === 0 || names.join() === 'final:final';
  return {
    loss,
    kl,
    ce,
    hidden: mean('hidden') ?? 0,
    ...(attention === undefined ? {} : { attention }),
    ...(isPlain ? {} : { pairs: Object.fromEntries(names.map((name, i) => [name, distances[i]!])) }),
  };
}

export const METRICS_FILE = 'metrics.jsonl';

/** A file of JSON lines, one a step, in order of steps. */
export interface StepLog<Line extends { readonly step: number }> {
  /** Step of the newest line. */
  readonly newest: number | undefined;
  /**
   * @throws StillhouseError DISK_FULL, NOT_WRITABLE; a line that did not fit is taken away when the log is opened again
   */
  append(line: Line): Promise<void>;
  close(): Promise<void>;
}

/** Opens a run's log for appending; lines beyond `lastStep` are from steps that were not saved and go. */
export async function openStepLog<Line extends { readonly step: number }>(
  out: string,
  file: string,
  lastStep: number,
): Promise<StepLog<Line>> {
  const path = join(out, file);
  const kept = (await readStepLog<Line>(out, file)).filter(({ step }) => step <= lastStep);
  await writeFileAtomically(path, kept.map((line) => `${JSON.stringify(line)}\n`).join(''));
  const guard = async <T>(work: () => Promise<T>): Promise<T> => {
    try {
      return await work();
    } catch (cause) {
      throw explainWriteFailure(path, cause);
    }
  };
  const handle: FileHandle = await guard(() => open(path, 'a'));
  let newest = kept.at(-1)?.step;
  return {
    get newest() {
      return newest;
    },
    append: (line) =>
      guard(async () => {
        await handle.appendFile(`${JSON.stringify(line)}\n`);
        newest = line.step;
      }),
    close: () => handle.close(),
  };
}

/**
 * The lines of a run's log so far; none when there is no such file. The line a killed process was writing is left out.
 */
export async function readStepLog<Line extends { readonly step: number }>(
  out: string,
  file: string,
): Promise<readonly Line[]> {
  const text = await readFile(join(out, file), 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return '';
    throw error;
  });
  return text.split('\n').flatMap((line) => {
    if (line === '') return [];
    try {
      return [JSON.parse(line) as Line];
    } catch {
      return [];
    }
  });
}
