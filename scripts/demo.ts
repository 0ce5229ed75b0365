/**
 * The main job from end to end on two cores, in about three minutes: cache a teacher once, train two students of a
 * fifth of its size with equal steps, one from the cache and one from hard labels, and compare them on problems that
 * neither has seen.
 *
 *   npm run demo [-- --seeds N] [-- --out DIR]
 */
import { mkdir, readFile, rm } from 'node:fs/promises';
import { join, relative } from 'node:path';
import { parseArgs } from 'node:util';
import { EVALUATION_SETTINGS, type ExactMatchResult, evaluateModel, type KdResult } from '@stillhouse/evaluation';
import { printShare, writeReport } from '@stillhouse/report';
import { resolveSettings } from '@stillhouse/settings';
import {
  INIT_SETTINGS,
  initStudent,
  METRICS_FILE,
  type StepMetrics,
  TRAINING_SETTINGS,
  trainStudent,
} from '@stillhouse/student-trainer';
import { BUILD_SETTINGS, type BuildResult, buildTeacherCache } from '@stillhouse/teacher-inference';

const root = new URL('..', import.meta.url).pathname;
const TEACHER = join(root, 'data/demo/teacher');
const PROBLEMS = join(root, 'data/demo/distil.jsonl');
const TEST = join(root, 'data/demo/test.jsonl');

/** A fifth of the teacher's parameters. */
const STUDENT = { layers: 4, hidden: 80, heads: 5, kvHeads: 1, intermediate: 200 };
/** What both students share. */
const TRAINING = {
  // What the README says of the demo was measured there.
  device: 'cpu',
  steps: 600,
  batchTokens: 1024,
  lr: 4e-3,
  warmupSteps: 60,
  finalLrRatio: 0.05,
  beta2: 0.98,
  weightDecay: 0.05,
  chunkPositions: 4096,
  checkpointEvery: 100_000,
};
/** Layers of the teacher whose states are cached beside the final ones, which stand for its whole distribution. */
const LAYERS = [1, 2, 3, 4];
/** What only the distilled one has: the teacher's whole distribution, and its states after each layer. */
const DISTILLATION = {
  labels: 'full',
  temperature: 2,
  alpha: 1,
  hiddenWeight: 10,
  hiddenLayers: ['uniform'],
} as const;

const { values } = parseArgs({
  options: { seeds: { type: 'string', default: '1' }, out: { type: 'string', default: 'out/demo' } },
});
const out = values.out;
const say = (line: string) => console.error(line);

interface Student {
  readonly kind: 'distilled' | 'hard labels';
  readonly seed: number;
  readonly metrics: readonly StepMetrics[];
  readonly tokensPerSecond: number;
  readonly exact: ExactMatchResult;
  readonly kd: KdResult;
}

async function build(
  name: string,
  data: string,
  hiddenLayers: readonly ('final' | number)[],
): Promise<BuildResult & { readonly folder: string }> {
  const folder = join(out, name);
  const result = await buildTeacherCache(
    resolveSettings(BUILD_SETTINGS, { teacher: TEACHER, data, out: folder, rowsPerShard: 512, hiddenLayers }),
  );
  return { ...result, folder };
}

async function ask(model: string, name: string): Promise<ExactMatchResult> {
  const settings = resolveSettings(EVALUATION_SETTINGS, {
    model,
    task: 'exact-match',
    data: TEST,
    out: join(out, `${name}.exact-match.json`),
    maxNewTokens: 48,
    batchSize: 64,
  });
  return (await evaluateModel(settings)) as ExactMatchResult;
}

async function train(kind: Student['kind'], seed: number, cache: string, heldOut: string): Promise<Student> {
  const name = `${kind.replace(' ', '-')}-${seed}`;
  const [untrained, folder] = [join(out, `untrained-${name}`), join(out, name)];
  await initStudent(resolveSettings(INIT_SETTINGS, { like: TEACHER, out: untrained, seed, ...STUDENT }));
  const objective = kind === 'distilled' ? DISTILLATION : { labels: 'none' };
  const { tokensPerSecond } = await trainStudent(
    resolveSettings(TRAINING_SETTINGS, { cache, student: untrained, out: folder, seed, ...TRAINING, ...objective }),
    {
      onStep: ({ step, ce }, steps) =>
        step % 100 === 0 && say(`  ${name}: step ${step} of ${steps}, cross-entropy ${ce.toFixed(3)}`),
    },
  );
  const metrics = (await readFile(join(folder, METRICS_FILE), 'utf8'))
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as StepMetrics);
  const kd = (await evaluateModel(
    resolveSettings(EVALUATION_SETTINGS, {
      model: folder,
      task: 'kd',
      cache: heldOut,
      out: join(out, `${name}.kd.json`),
      chunkPositions: 4096,
      batchSize: 32,
    }),
  )) as KdResult;
  return { kind, seed, metrics, tokensPerSecond, exact: await ask(folder, name), kd };
}

const mean = (numbers: readonly number[]) => numbers.reduce((sum, one) => sum + one, 0) / numbers.length;

/** Every tenth step, each the mean of ten: single steps jump. */
function curve(metrics: readonly StepMetrics[], key: 'ce' | 'kl'): (readonly [number, number])[] {
  const points: (readonly [number, number])[] = [];
  for (let i = 10; i <= metrics.length; i += 10)
    points.push([metrics[i - 1]!.step, mean(metrics.slice(i - 10, i).map((one) => one[key]))]);
  return points;
}

const startedAt = performance.now();
await rm(out, { recursive: true, force: true });
await mkdir(out, { recursive: true });
say('1 of 3: the teacher scores 4,000 problems once, and the held-out ones for comparison');
const cache = await build('cache', PROBLEMS, ['final', ...LAYERS]);
const heldOut = await build('held-out', TEST, ['final']);
const teacher = await ask(TEACHER, 'teacher');
say(
  `  ${cache.rows} rows, ${cache.tokens} tokens, ${(cache.size.totalBytes / cache.tokens).toFixed(0)} bytes a ` +
    `token; the teacher answers ${printShare(teacher.accuracy)} of the test right`,
);

say('2 of 3: two students, equal steps over the same problems');
const students: Student[] = [];
for (let seed = 1; seed <= Number(values.seeds); seed++) {
  for (const kind of ['distilled', 'hard labels'] as const)
    students.push(await train(kind, seed, cache.folder, heldOut.folder));
}

say('3 of 3: the report');
const of = (kind: Student['kind']) => students.filter((student) => student.kind === kind);
const rows = students.map(({ kind, seed, exact, kd, tokensPerSecond }) => [
  `${kind}, seed ${seed}`,
  printShare(exact.accuracy),
  `${printShare(exact.interval.low)} to ${printShare(exact.interval.high)}`,
  kd.kl['1']!,
  kd.kl['2']!,
  kd.ce,
  printShare(kd.top1Agreement),
  Math.round(tokensPerSecond),
]);
const reportPath = join(out, 'report.html');
await writeReport(
  {
    title: 'A teacher distilled into a fifth of its size',
    subtitle:
      `${TRAINING.steps} steps each over ${cache.rows} problems; ` + `${teacher.questions} held-out problems to answer`,
    sections: [
      {
        blocks: [
          {
            kind: 'figures',
            figures: [
              { label: 'teacher', value: printShare(teacher.accuracy) },
              ...(['distilled', 'hard labels'] as const).map((kind) => ({
                label: `student, ${kind}`,
                value: printShare(mean(of(kind).map(({ exact }) => exact.accuracy))),
              })),
              {
                label: 'cache',
                value: `${(cache.size.totalBytes / cache.tokens).toFixed(0)} B`,
                note: 'a token, output matrix included',
              },
            ],
          },
          {
            kind: 'bars',
            title: 'Right answers on held-out problems, with 95 % intervals',
            valueLabel: 'right answers',
            format: '.0%',
            bars: [
              { name: 'teacher', value: teacher.accuracy, ...teacher.interval },
              ...students.map(({ kind, seed, exact }) => ({
                name: `${kind}, seed ${seed}`,
                value: exact.accuracy,
                ...exact.interval,
              })),
            ],
          },
        ],
      },
      {
        heading: 'Students',
        blocks: [
          {
            kind: 'table',
            columns: [
              'student',
              'right',
              '95 % interval',
              'KL, T=1',
              'KL, T=2',
              'cross-entropy',
              'top-1 agreement',
              'tokens/s',
            ],
            rows,
          },
          {
            kind: 'paragraph',
            text:
              'KL is from the teacher to the student on the held-out problems, in nats a token; both students ' +
              'saw the same problems in the same order.',
          },
        ],
      },
      {
        heading: 'Training',
        blocks: [
          {
            kind: 'lines',
            title: 'Cross-entropy on the training problems',
            xLabel: 'step',
            yLabel: 'nats',
            logY: true,
            series: students.map(({ kind, seed, metrics }) => ({
              name: `${kind}, seed ${seed}`,
              group: kind,
              points: curve(metrics, 'ce'),
            })),
          },
          {
            kind: 'lines',
            title: `KL to the teacher at T=${DISTILLATION.temperature}`,
            xLabel: 'step',
            yLabel: 'nats',
            logY: true,
            series: of('distilled').map(({ seed, metrics }) => ({
              name: `seed ${seed}`,
              group: 'distilled',
              points: curve(metrics, 'kl'),
            })),
          },
        ],
      },
    ],
  },
  reportPath,
);

console.log(
  [
    '',
    `teacher                 ${printShare(teacher.accuracy)} of ${teacher.questions} held-out problems`,
    ...students.map(
      ({ kind, seed, exact, kd }) =>
        `${`${kind}, seed ${seed}`.padEnd(24)}${printShare(exact.accuracy)}   KL ${kd.kl['1']!.toFixed(3)} nats`,
    ),
    `report                  ${relative('.', reportPath)}`,
    `time                    ${((performance.now() - startedAt) / 1000).toFixed(0)} s`,
  ].join('\n'),
);
