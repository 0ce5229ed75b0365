import { open, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { writeFileAtomically } from '@stillhouse/durable-files';

/** One line of metrics.jsonl. Losses are means over the step's target tokens, in nats. */
export interface StepMetrics {
  readonly step: number;
  /** alpha T² KL + (1 - alpha) CE + hiddenWeight hidden. */
  readonly loss: number;
  /** At temperature T, without T²; 0 without soft labels. */
  readonly kl: number;
  readonly ce: number;
  readonly hidden: number;
  readonly lr: number;
  /** Global gradient norm before clipping. */
  readonly gradNorm: number;
  readonly tokens: number;
  readonly targetTokens: number;
  /** Tokens since the run began. */
  readonly tokensSeen: number;
  /** Time in steps since the run began, interruptions left out. */
  readonly elapsedMs: number;
}

export const METRICS_FILE = 'metrics.jsonl';

export interface MetricsLog {
  append(metrics: StepMetrics): Promise<void>;
  close(): Promise<void>;
}

/** Opens a run's metrics for appending; lines beyond `lastStep` are from steps that were not saved and go. */
export async function openMetricsLog(out: string, lastStep: number): Promise<MetricsLog> {
  const path = join(out, METRICS_FILE);
  const before = await readFile(path, 'utf8').catch(() => '');
  const kept = before.split('\n').filter((line) => line !== '' && isUpTo(line, lastStep));
  await writeFileAtomically(path, kept.map((line) => `${line}\n`).join(''));
  const handle = await open(path, 'a');
  return {
    append: async (metrics) => {
      await handle.appendFile(`${JSON.stringify(metrics)}\n`);
    },
    close: () => handle.close(),
  };
}

function isUpTo(line: string, lastStep: number): boolean {
  try {
    return (JSON.parse(line) as StepMetrics).step <= lastStep;
  } catch {
    return false; // the line a killed process was writing
  }
}
