import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { resolveSettings } from '@stillhouse/settings';
import { type StepMetrics, TRAINING_SETTINGS, type TrainingEvents, type TrainingSettings } from '../index.ts';

/** The student of the golden files. */
export const TINY_STUDENT = new URL('../../../../test/golden/qwen2-tiny', import.meta.url).pathname;

/** A teacher of its vocabulary, for `writeSyntheticCache`. */
export const TINY_TEACHER = { vocabSize: 512, hiddenSize: 24, rows: 10, k: 12, temperatures: [1, 2] };

/** Six steps on top-k labels with a checkpoint every two, and what a test changes. */
export const tinyRun = (given: Partial<TrainingSettings>): TrainingSettings =>
  resolveSettings(TRAINING_SETTINGS, {
    student: TINY_STUDENT,
    labels: 'topk',
    steps: 6,
    batchTokens: 24,
    lr: 1e-3,
    threads: 1,
    checkpointEvery: 2,
    ...given,
  });

/** Events that stop a run in its step `at`, as a signal would. */
export function stopAt(at: number): TrainingEvents {
  const stop = new AbortController();
  return {
    stopSignal: stop.signal,
    onStep: ({ step }) => {
      if (step === at) stop.abort();
    },
  };
}

export const readMetrics = async (out: string): Promise<readonly StepMetrics[]> =>
  (await readFile(join(out, 'metrics.jsonl'), 'utf8'))
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as StepMetrics);
