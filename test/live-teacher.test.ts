import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { openModelWeights, readModelConfig } from '@stillhouse/checkpoint';
import { flatIndex, padSequences } from '@stillhouse/model-runner';
import {
  collectLabels,
  emitCrossEntropy,
  emitDivergence,
  emitFullDistributions,
  type Objective,
} from '@stillhouse/objectives';
import { differentiate, GraphBuilder } from '@stillhouse/onnx-graph';
import { openEngine } from '@stillhouse/runtime';
import { resolveSettings } from '@stillhouse/settings';
import { createStudent } from '@stillhouse/student-trainer';
import { openCache, type WeightsIdentity } from '@stillhouse/teacher-cache';
import { BUILD_SETTINGS, buildTeacherCache } from '@stillhouse/teacher-inference';
import { expectClose, makeTemporaryFolder, randomUniforms } from '@stillhouse/testing';
import { afterAll, test } from 'vitest';
import { batchInputs, emitDecoder, uploadBatchInputs, uploadParameters } from './whole-decoder.ts';

const engine = await openEngine({ threads: 1 });
afterAll(() => engine.close());

const GOLDEN = new URL('./golden/', import.meta.url).pathname;
const [TEACHER, STUDENT] = [join(GOLDEN, 'qwen2-tiny-untied'), join(GOLDEN, 'qwen2-tiny')];
const [TEMPERATURE, ALPHA] = [2, 0.7];

test('full labels with float32 hidden states equal the live teacher: loss and every gradient within 1e-5', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const uniform = randomUniforms(11);
  const rows = [9, 14, 6].map((length) => ({
    input_ids: Array.from({ length }, () => Math.floor(uniform() * 512)),
    loss_mask: Array.from({ length }, (_, i) => (i > 2 ? 1 : 0)),
  }));
  const data = join(folder, 'rows.jsonl');
  await writeFile(data, rows.map((row) => `${JSON.stringify(row)}\n`).join(''));
  const out = join(folder, 'cache');
  await buildTeacherCache(
    resolveSettings(BUILD_SETTINGS, {
      teacher: TEACHER,
      data,
      out,
      labels: ['hidden'],
      hiddenDtype: 'f32',
      threads: 1,
    }),
  );

  // From the cache, as the trainer does it, in float32.
  const cache = await openCache(out);
  t.onTestFinished(() => cache.close());
  const config = await readModelConfig(STUDENT);
  const weights = await openModelWeights(STUDENT, config);
  const labelled = [await cache.readRow(0), await cache.readRow(1), await cache.readRow(2)];
  const { hiddenSize, vocabSize } = cache.description.teacher as WeightsIdentity;
  const objective: Objective = {
    labels: { kind: 'full', teacherHidden: hiddenSize },
    divergence: { kind: 'forward-kl' },
  };
  const student = await createStudent(engine, {
    config,
    float: 'float32',
    read: (name) => weights.tensors.get(name)!.read('float32'),
    objective,
    scalars: { temperature: TEMPERATURE, alpha: ALPHA, hiddenWeight: 0 },
    adamw: { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1, clip: 1 },
    vocabSize,
    chunkPositions: 7,
    teacherHead: engine.upload(await cache.readOutputMatrix(), 'float32', [vocabSize, hiddenSize]),
  });
  const labels = collectLabels(labelled, {
    objective,
    temperature: TEMPERATURE,
    temperatures: [],
    vocabSize,
    float: 'float32',
  });
  const sequences = labelled.map(({ row }) => row.inputIds);
  const cached = await student.computeGradients([{ sequences, labels }], labels.count);

  // Live: teacher and student side by side in one float64 graph.
  const teacherConfig = await readModelConfig(TEACHER);
  const teacherWeights = await openModelWeights(TEACHER, teacherConfig);
  const g = new GraphBuilder('live', 'float64');
  const inputs = batchInputs(g);
  const targets = g.input('targets', 'int64', ['N']);
  const nextIds = g.input('labels', 'int64', ['N']);
  const ours = emitDecoder(g, config, 'student.', inputs);
  const theirs = emitDecoder(g, teacherConfig, 'teacher.', inputs);
  const [z, tLogits] = [g.gather(ours.logits, targets), g.gather(theirs.logits, targets)];
  const kl = emitDivergence(g, { kind: 'forward-kl' }, emitFullDistributions(g, z, tLogits, g.scalar(TEMPERATURE)));
  const perToken = g.add(g.scale(kl, ALPHA * TEMPERATURE ** 2), g.scale(emitCrossEntropy(g, z, nextIds), 1 - ALPHA));
  const loss = g.scale(g.sumAll(perToken), 1 / labels.count);
  const wanted = [...ours.parameters];
  const gradients = differentiate(g, { seeds: [[loss, g.scalar(1)]], withRespectTo: wanted.map(([, value]) => value) });
  g.output('loss', loss);
  for (const [name, value] of wanted) g.output(`gradient.${name}`, gradients.get(value)!);
  const program = await engine.compile(g);
  const batch = padSequences(sequences);
  const outputs = Object.fromEntries([
    ['loss', engine.allocate('float64', [])],
    ...wanted.map(
      ([name, { shape: dims }]) => [`gradient.${name}`, engine.allocate('float64', dims as readonly number[])] as const,
    ),
  ]);
  await engine.run([
    {
      kind: 'run',
      program,
      inputs: {
        ...uploadBatchInputs(engine, batch),
        targets: engine.upload(
          BigInt64Array.from(labels.positions, (position, n) =>
            BigInt(flatIndex(batch, batch.placements[labels.rows[n]!]!, position)),
          ),
          'int64',
          [labels.count],
        ),
        labels: engine.upload(labels.labels, 'int64', [labels.count]),
        ...(await uploadParameters(engine, weights, 'student.', 'float64')),
        ...(await uploadParameters(engine, teacherWeights, 'teacher.', 'float64')),
      },
      outputs,
    },
  ]);
  const live = Number((await engine.download(outputs.loss!))[0]);
  assert.ok(Math.abs(live - cached.sums.loss) < 1e-5 * Math.max(1, live), `loss ${cached.sums.loss} against ${live}`);
  for (const { name, gradient } of student.parameters.trained) {
    const [mine, exact] = (await engine.downloadMany([gradient, outputs[`gradient.${name}`]!])) as [
      Float32Array,
      Float64Array,
    ];
    expectClose(mine, exact, { absolute: 1e-5, where: `gradient of ${name}` });
  }
});
