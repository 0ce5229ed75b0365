/**
 * Makes the demo's teacher, data/demo/teacher, from nothing: problems by seed, cross-entropy only, with the trainer
 * that trains students. About a quarter of an hour on two cores.
 *
 *   node scripts/with-dependencies.js data/demo/train-teacher.ts [--work DIR]
 */
import { cp, mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { resolveSettings } from '@stillhouse/settings';
import { INIT_SETTINGS, initStudent, TRAINING_SETTINGS, trainStudent } from '@stillhouse/student-trainer';
import { BUILD_SETTINGS, buildTeacherCache } from '@stillhouse/teacher-inference';
import { writeProblems } from './make-problems.ts';

const here = new URL('.', import.meta.url).pathname;
const PROBLEMS = 240_000;
const SEED = 1;

const { values } = parseArgs({ options: { work: { type: 'string', default: 'out/demo-teacher' } } });
const work = values.work;
const at = (name: string) => join(work, name);

await mkdir(work, { recursive: true });
await writeProblems(at('problems.jsonl'), { split: 'teacher-train', seed: SEED, count: PROBLEMS });
await buildTeacherCache(
  resolveSettings(BUILD_SETTINGS, {
    data: at('problems.jsonl'),
    tokenizer: join(here, 'tokenizer'),
    labels: ['none'],
    rowsPerShard: 16384,
    out: at('rows'),
  }),
);

// A model to be like: the architecture with the demo's tokenizer.
await cp(join(here, 'tokenizer'), at('like'), { recursive: true });
await cp(join(here, 'teacher-config.json'), at('like/config.json'));
await initStudent(resolveSettings(INIT_SETTINGS, { like: at('like'), out: at('untrained'), seed: SEED }));

await trainStudent(
  resolveSettings(TRAINING_SETTINGS, {
    cache: at('rows'),
    student: at('untrained'),
    out: at('run'),
    labels: 'none',
    device: 'cpu',
    steps: 2400,
    batchTokens: 3072,
    lr: 2e-3,
    warmupSteps: 100,
    finalLrRatio: 0.02,
    beta2: 0.98,
    weightDecay: 0.05,
    seed: SEED,
    chunkPositions: 4096,
    checkpointEvery: 500,
    saveDtype: 'bfloat16',
  }),
  {
    onStep: ({ step, loss }, steps) =>
      step % 50 === 0 && console.error(`step ${step} of ${steps}, loss ${loss.toFixed(4)}`),
  },
);

const teacher = join(here, 'teacher');
await rm(teacher, { recursive: true, force: true });
await mkdir(teacher);
for (const name of [
  'config.json',
  'generation_config.json',
  'model.safetensors',
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
]) {
  await cp(join(at('run'), name), join(teacher, name));
}
