import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { resolveSettings } from '@stillhouse/settings';
import { makeTemporaryFolder } from '@stillhouse/testing';
import type { TestContext } from 'vitest';
import { TRAINING_SETTINGS, type TrainingResult, type TrainingSettings, trainStudent } from '../index.ts';
import { writeSyntheticCache } from './synthetic-cache.ts';

const STUDENT = new URL('../../../../test/golden/qwen2-tiny', import.meta.url).pathname;
const CUT_AT = 3;

/** Four steps of a tiny student, in a folder of their own; `name` is that of the run. */
type Run = (name: string, given?: Partial<TrainingSettings>, stopAt?: number) => Promise<TrainingResult>;

/**
 * Trains on a device at once, and again cut short and resumed: both students are the same bytes.
 * @returns the straight run, and how to make others beside it
 */
export async function expectResumedRunIsStraight(
  t: TestContext,
  settings: Partial<TrainingSettings>,
): Promise<{ readonly straight: TrainingResult; readonly run: Run; readonly modelOf: (name: string) => string }> {
  const folder = await makeTemporaryFolder(t);
  const cache = join(folder, 'cache');
  await writeSyntheticCache(cache, { vocabSize: 512, hiddenSize: 24, rows: 6, k: 12, temperatures: [1, 2] });
  const modelOf = (name: string) => join(folder, name, 'model.safetensors');
  const run: Run = (name, given = {}, stopAt) =>
    trainStudent(
      resolveSettings(TRAINING_SETTINGS, {
        ...{ student: STUDENT, cache, out: join(folder, name), labels: 'topk', steps: 4, batchTokens: 24, lr: 1e-3 },
        ...{ threads: 1, checkpointEvery: 2, selectTokens: 0.5, ...settings, ...given },
      }),
      {
        onStep: ({ step }) => {
          if (step === stopAt) throw new Error('stopped');
        },
      },
    );
  const straight = await run('straight');
  await assert.rejects(run('cut', {}, CUT_AT), /stopped/);
  await run('cut', { resume: true });
  assert.deepEqual(await readFile(modelOf('cut')), await readFile(modelOf('straight')));
  return { straight, run, modelOf };
}
