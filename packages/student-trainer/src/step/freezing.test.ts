import assert from 'node:assert/strict';
import { cp, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type ModelConfig, openSafetensors, readModelConfig } from '@stillhouse/checkpoint';
import { isStillhouseError } from '@stillhouse/errors';
import { openEngine } from '@stillhouse/runtime';
import { expectClose, makeTemporaryFolder } from '@stillhouse/testing';
import { afterAll, test } from 'vitest';
import { trainStudent } from '../index.ts';
import { PROJECTION_NAME } from '../plan/projections.ts';
import { resolveTrainLayers, trainedNames } from '../settings/train-layers.ts';
import { openGoldenStudent, readStep } from '../testing/golden-student.ts';
import { writeSyntheticCache } from '../testing/synthetic-cache.ts';
import { stopAt, TINY_STUDENT, TINY_TEACHER, tinyRun } from '../testing/tiny-run.ts';

const engine = await openEngine({ threads: 1 });
afterAll(() => engine.close());

const config = await readModelConfig(TINY_STUDENT);

const untied = { ...config, tieWordEmbeddings: false };

const select = (...entries: string[]) => trainedNames(resolveTrainLayers(entries, config));
const selectUntied = (...entries: string[]) => trainedNames(resolveTrainLayers(entries, untied));

async function gradientsOf(config: ModelConfig, trained: (name: string) => boolean, recompute: boolean) {
  const student = await openGoldenStudent(engine, 'tail', 'float64', { config, trained, recompute });
  const { microBatches, targets } = await readStep(0, 'tail', 'float64', [[0], [1, 2]]);
  const { sums, gradientNorm } = await student.computeGradients(microBatches, targets);
  const parameters = student.parameters.trained;
  const gradients = (await engine.downloadMany(parameters.map(({ gradient }) => gradient))) as Float64Array[];
  return { sums, gradientNorm, gradients: new Map(parameters.map(({ name }, i) => [name, gradients[i]!])) };
}

test('what learns gets the gradient that it has where all learns, whatever else is frozen', async () => {
  const wholes = new Map([
    [config, await gradientsOf(config, () => true, false)],
    [untied, await gradientsOf(untied, () => true, false)],
  ]);
  // Among these: gaps, the lowest layer's input, the embedding under frozen layers, no layer at all, single tensors.
  const choices: readonly [string, ModelConfig, (name: string) => boolean][] = [
    ['last-1', config, select('last-1')],
    ['first-1', config, select('first-1')],
    ['0-1', config, select('0-1')],
    ['norm', config, select('norm')],
    ['embedding and head as one', config, select('head')],
    ['embedding', untied, selectUntied('embedding')],
    ['head', untied, selectUntied('head')],
    ['head, last-1', untied, selectUntied('head', 'last-1')],
    ['a single tensor', config, (name) => name === 'model.layers.1.self_attn.v_proj.weight'],
    ['biases', config, (name) => name.endsWith('.bias')],
  ];
  for (const [label, of, trained] of choices) {
    const whole = wholes.get(of)!;
    for (const recompute of [false, true]) {
      const some = await gradientsOf(of, trained, recompute);
      const names = [...whole.gradients.keys()].filter((name) => name === PROJECTION_NAME || trained(name));
      assert.deepEqual([...some.gradients.keys()], names, label);
      assert.ok(Math.abs(some.sums.loss - whole.sums.loss) < 1e-13);
      for (const name of names) {
        const where = `${label}, recompute ${recompute}: gradient of ${name}`;
        expectClose(some.gradients.get(name)!, whole.gradients.get(name)!, { absolute: 1e-14, where });
      }
      const squares = [...some.gradients.values()].flatMap((one) => [...one]).reduce((sum, x) => sum + x * x, 0);
      assert.ok(Math.abs(some.gradientNorm - Math.sqrt(squares)) < 1e-12, label);
    }
  }
});

test('activations are kept and accumulators allocated only where something learns', async () => {
  const allocated = async (trained: (name: string) => boolean) => {
    const before = (await engine.memory()).allocatedBytes;
    const student = await openGoldenStudent(engine, 'tail', 'float64', { trained });
    const opened = (await engine.memory()).allocatedBytes - before;
    const { microBatches, targets } = await readStep(0, 'tail', 'float64');
    await student.computeGradients(microBatches, targets);
    return { opened, activations: (await engine.memory()).allocatedBytes - before - opened };
  };
  const elements = (names: (name: string) => boolean, tensors: readonly { name: string; shape: readonly number[] }[]) =>
    tensors.filter(({ name }) => names(name)).reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
  const { tensors } = (await openGoldenStudent(engine, 'tail', 'float64')).parameters;
  const [whole, last, norm] = [
    await allocated(() => true),
    await allocated(select('last-1')),
    await allocated(select('norm')),
  ];
  // Gradient and two moments of each element that is frozen are saved; AdamW's sums are one number a chunk.
  const frozen = elements((name) => name !== PROJECTION_NAME && !select('last-1')(name), tensors);
  assert.ok(Math.abs(whole.opened - last.opened - 3 * 8 * frozen) < 1000);
  assert.ok(last.activations < 0.6 * whole.activations);
  assert.equal(norm.activations, 0);
});

const settings = tinyRun;

test('a run leaves what is frozen bit for bit, writes a whole student, and resumes to the same', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const [cache, straight, cut] = ['cache', 'straight', 'cut'].map((name) => join(folder, name)) as [
    string,
    string,
    string,
  ];
  await writeSyntheticCache(cache, TINY_TEACHER);
  const common = { cache, trainLayers: [1, 'norm'] } as const;
  await trainStudent(settings({ ...common, out: straight }));
  const [before, after] = [
    await openSafetensors(join(TINY_STUDENT, 'model.safetensors')),
    await openSafetensors(join(straight, 'model.safetensors')),
  ];
  const changed: string[] = [];
  for (const name of before.tensors.keys()) {
    const [was, is] = [await before.read(name, 'float32'), await after.read(name, 'float32')];
    if (Buffer.compare(Buffer.from(was.buffer), Buffer.from(is.buffer)) !== 0) changed.push(name);
  }
  await before.close();
  await after.close();
  const expected = [...before.tensors.keys()].filter((name) => select('1', 'norm')(name));
  assert.deepEqual(changed.sort(), expected.sort());

  await trainStudent(settings({ ...common, out: cut }), stopAt(3));
  const [checkpoint] = (await readdir(join(cut, 'checkpoints'))).slice(-1);
  const kept = await openSafetensors(join(cut, 'checkpoints', checkpoint!, 'weights.safetensors'));
  assert.deepEqual([...kept.tensors.keys()].sort(), expected);
  await kept.close();

  const other = join(folder, 'other');
  await cp(TINY_STUDENT, other, { recursive: true });
  const weights = await readFile(join(other, 'model.safetensors'));
  // The first element of the first tensor, which is no part of layer 1.
  weights.writeFloatLE(0.123, 8 + Number(weights.readBigUInt64LE(0)));
  await writeFile(join(other, 'model.safetensors'), weights);
  await assert.rejects(trainStudent(settings({ ...common, student: other, out: cut, resume: true })), (error) => {
    assert.ok(isStillhouseError(error, 'CHECKPOINT_MISMATCH'), String(error));
    assert.match(error.message, /the weights that do not learn differ/);
    return true;
  });
  await trainStudent(settings({ ...common, out: cut, resume: true }));
  assert.deepEqual(await readFile(join(cut, 'model.safetensors')), await readFile(join(straight, 'model.safetensors')));
  await assert.rejects(trainStudent(settings({ cache, out: cut, trainLayers: [1], resume: true })), (error) =>
    isStillhouseError(error, 'RECIPE_DIFFERS'),
  );
});
