import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { adapterNames, isAdapterName, openSafetensors, readModelConfig } from '@stillhouse/checkpoint';
import { LINEAR_NAMES } from '@stillhouse/decoder';
import { isStillhouseError } from '@stillhouse/errors';
import {
  compileForwardPrograms,
  type DecoderOnDevice,
  openResidentPass,
  packSequences,
} from '@stillhouse/model-runner';
import { openEngine } from '@stillhouse/runtime';
import { expectClose, makeTemporaryFolder, randomNormals } from '@stillhouse/testing';
import { afterAll, test } from 'vitest';
import { type TrainingSettings, trainStudent } from '../index.ts';
import { resolveLearning } from '../plan/learning.ts';
import { isProjection } from '../plan/projections.ts';
import { openMergedReader } from '../save/save-adapter.ts';
import { openGoldenStudent, readStep } from '../testing/golden-student.ts';
import { writeSyntheticCache } from '../testing/synthetic-cache.ts';
import { stopAt, TINY_STUDENT, TINY_TEACHER, tinyRun } from '../testing/tiny-run.ts';
import { initialAdapter, type StudentAdapter, studentAdapterParameters } from './adapters.ts';
import type { Student } from './student.ts';
import { viewAsDecoder } from './student-decoder.ts';

const engine = await openEngine({ threads: 1 });
afterAll(() => engine.close());

const config = await readModelConfig(TINY_STUDENT);

const everywhere: StudentAdapter = {
  rank: 3,
  alpha: 6,
  scale: 2,
  targets: LINEAR_NAMES,
  layers: new Set([0, 1]),
};
const upperOnly: StudentAdapter = { ...everywhere, targets: ['v_proj', 'down_proj'], layers: new Set([1]) };

const base = await openSafetensors(`${TINY_STUDENT}/model.safetensors`);
afterAll(() => base.close());
const projection = await openSafetensors(`${TINY_STUDENT}/../train-10-steps/projection.safetensors`);
afterAll(() => projection.close());

/** Values of A and B that are zero nowhere. */
function randomAdapter(adapter: StudentAdapter): Map<string, Float64Array<ArrayBuffer>> {
  const normal = randomNormals(11);
  return new Map(
    studentAdapterParameters(config, adapter).map(({ name, shape }) => [
      name,
      Float64Array.from({ length: shape[0]! * shape[1]! }, () => 0.1 * normal()),
    ]),
  );
}

const readWith = (values: ReadonlyMap<string, Float64Array<ArrayBuffer>>) => async (name: string) => {
  const own = values.get(name);
  if (own !== undefined) return own.slice();
  return (isProjection(name) ? projection : base).read(name, 'float64');
};

/** a [m, k] times b [k, n], each transposed first where asked. */
function multiply(
  a: Float64Array,
  b: Float64Array,
  [m, k, n]: readonly [number, number, number],
  { transA = false, transB = false } = {},
): Float64Array<ArrayBuffer> {
  return Float64Array.from({ length: m * n }, (_, at) => {
    const [i, j] = [Math.floor(at / n), at % n];
    let sum = 0;
    for (let t = 0; t < k; t++) sum += a[transA ? t * m + i : i * k + t]! * b[transB ? j * k + t : t * n + j]!;
    return sum;
  });
}

interface Adapted {
  readonly weightName: string;
  readonly a: string;
  readonly b: string;
  readonly outSize: number;
  readonly inSize: number;
}

const adapted = (adapter: StudentAdapter): readonly Adapted[] =>
  studentAdapterParameters(config, adapter)
    .filter(({ name }) => name.includes('.lora_A.'))
    .map(({ name, shape }) => {
      const linear = name.replace('.lora_A.weight', '');
      const { a, b } = adapterNames(linear);
      const rows = base.tensors.get(`${linear}.weight`)!.shape[0]!;
      return { weightName: `${linear}.weight`, a, b, outSize: rows, inSize: shape[1]! };
    });

/** The student's weights with the adapters taken in, computed here. */
async function mergeByHand(adapter: StudentAdapter, values: ReadonlyMap<string, Float64Array<ArrayBuffer>>) {
  const merged = new Map<string, Float64Array<ArrayBuffer>>();
  for (const { weightName, a, b, outSize, inSize } of adapted(adapter)) {
    const product = multiply(values.get(b)!, values.get(a)!, [outSize, adapter.rank, inSize]);
    const weight = await base.read(weightName, 'float64');
    merged.set(
      weightName,
      weight.map((one, i) => one + adapter.scale * product[i]!),
    );
  }
  return merged;
}

const openAdapted = (adapter: StudentAdapter, values: ReadonlyMap<string, Float64Array<ArrayBuffer>>, more = {}) =>
  openGoldenStudent(engine, 'tail', 'float64', { adapter, trained: isAdapterName, read: readWith(values), ...more });

async function computeGradients(student: Student) {
  const { microBatches, targets } = await readStep(0, 'tail', 'float64', [[0], [1, 2]]);
  const { sums } = await student.computeGradients(microBatches, targets);
  const parameters = student.parameters.trained;
  const gradients = (await engine.downloadMany(
    parameters.map(({ gradient }) => gradient),
  )) as Float64Array<ArrayBuffer>[];
  return { loss: sums.loss, gradients: new Map(parameters.map(({ name }, i) => [name, gradients[i]!])) };
}

test("adapters' gradients are the merged student's, through W + s B A", async () => {
  for (const [label, adapter] of Object.entries({ everywhere, upperOnly })) {
    const { rank, scale } = adapter;
    const values = randomAdapter(adapter);
    const merged = await mergeByHand(adapter, values);
    const whole = await computeGradients(
      await openGoldenStudent(engine, 'tail', 'float64', { read: readWith(merged) }),
    );
    for (const recompute of [false, true]) {
      const { loss, gradients } = await computeGradients(await openAdapted(adapter, values, { recompute }));
      assert.ok(Math.abs(loss - whole.loss) < 1e-13, `${label}: ${loss} against ${whole.loss}`);
      assert.equal(gradients.size, 2 * adapted(adapter).length + 1, 'adapters and the projection');
      for (const { weightName, a, b, outSize, inSize } of adapted(adapter)) {
        const dW = whole.gradients.get(weightName)!;
        const dA = multiply(values.get(b)!, dW, [rank, outSize, inSize], { transA: true });
        const dB = multiply(dW, values.get(a)!, [outSize, inSize, rank], { transB: true });
        const where = `${label}, recompute ${recompute}: gradient of`;
        expectClose(
          gradients.get(a)!,
          dA.map((x) => scale * x),
          { absolute: 1e-13, where: `${where} ${a}` },
        );
        expectClose(
          gradients.get(b)!,
          dB.map((x) => scale * x),
          { absolute: 1e-13, where: `${where} ${b}` },
        );
      }
    }
  }
});

test('along a random direction of A and of B the loss changes as the gradients say', async () => {
  const values = randomAdapter(everywhere);
  const { gradients } = await computeGradients(await openAdapted(everywhere, values));
  const normal = randomNormals(5);
  for (const part of ['.lora_A.', '.lora_B.']) {
    const direction = new Map(
      [...values].filter(([name]) => name.includes(part)).map(([name, one]) => [name, one.map(() => normal())]),
    );
    const lossAt = async (step: number) => {
      const moved = new Map(
        [...values].map(([name, one]) => [name, one.map((x, i) => x + step * (direction.get(name)?.[i] ?? 0))]),
      );
      return (await computeGradients(await openAdapted(everywhere, moved))).loss;
    };
    const h = 2e-6;
    const central = ((await lossAt(h)) - (await lossAt(-h))) / (2 * h);
    const slopes = [...direction].map(([name, one]) =>
      one.reduce((sum, x, i) => sum + x * gradients.get(name)![i]!, 0),
    );
    const expected = slopes.reduce((sum, slope) => sum + slope, 0);
    assert.ok(Math.abs(central - expected) < 1e-6 * Math.abs(expected), `${part} ${central} against ${expected}`);
  }
});

test('what evaluation reads and what is saved are the same model', async () => {
  for (const adapter of [everywhere, upperOnly]) {
    const values = randomAdapter(adapter);
    const student = await openAdapted(adapter, values);
    const read = await openMergedReader(engine, student.parameters);
    const byHand = await mergeByHand(adapter, values);
    for (const { name } of student.parameters.tensors.filter((one) => !isAdapterName(one.name))) {
      const expected = byHand.get(name) ?? (await readWith(new Map())(name));
      expectClose((await read(name)) as Float64Array, expected, { absolute: 1e-15, where: name });
    }
    const streamOf = async (model: DecoderOnDevice) => {
      const programs = await compileForwardPrograms(engine, config, 'float64', model.adapter);
      const batch = packSequences([Int32Array.of(5, 9, 2, 77)]);
      const pass = await openResidentPass(engine, programs, model, batch);
      await engine.run([...pass.embed, ...pass.layers]);
      return (await engine.download(pass.x)) as Float64Array;
    };
    const merged = await openGoldenStudent(engine, 'tail', 'float64', { read: readWith(byHand) });
    const [adaptedStream, mergedStream] = [
      await streamOf(viewAsDecoder(config, 'float64', student.parameters)),
      await streamOf(viewAsDecoder(config, 'float64', merged.parameters)),
    ];
    expectClose(adaptedStream, mergedStream, { absolute: 1e-12, where: 'residual stream' });
  }
});

test('new adapters change nothing, are uniform within 1/√in, and the same for a seed', () => {
  const make = (seed: number) => initialAdapter(config, everywhere, seed);
  const [read, again, other] = [make(1), make(1), make(2)];
  for (const { name, shape } of studentAdapterParameters(config, everywhere)) {
    const values = read(name);
    assert.deepEqual(values, again(name));
    if (name.includes('.lora_B.')) {
      assert.ok(values.every((x) => x === 0));
      continue;
    }
    assert.notDeepEqual(values, other(name));
    const bound = 1 / Math.sqrt(shape[1]!);
    assert.ok(values.every((x) => Math.abs(x) <= bound));
    const deviation = Math.sqrt(values.reduce((sum, x) => sum + x * x, 0) / values.length);
    assert.ok(Math.abs(deviation / (bound / Math.sqrt(3)) - 1) < 0.15, `${name}: ${deviation} against ${bound}/√3`);
  }
});

const settings = (given: Partial<TrainingSettings>): TrainingSettings => tinyRun({ lr: 1e-2, loraRank: 2, ...given });

test('a run trains adapters alone, resumes to the same, and writes both the merged student and the adapters', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const [cache, straight, cut] = ['cache', 'straight', 'cut'].map((name) => join(folder, name)) as [
    string,
    string,
    string,
  ];
  await writeSyntheticCache(cache, TINY_TEACHER);
  const common = { cache, loraAlpha: 4, loraTargets: ['q_proj', 'up_proj'] as const, trainLayers: ['last-1'] };
  await trainStudent(settings({ ...common, out: straight }));
  await trainStudent(settings({ ...common, out: cut }), stopAt(3));
  assert.ok(!(await readdir(cut)).includes('adapter'));
  await trainStudent(settings({ ...common, out: cut, resume: true }));
  const files = ['model.safetensors', 'adapter/adapter_model.safetensors', 'adapter/adapter_config.json'];
  for (const file of files) assert.deepEqual(await readFile(join(cut, file)), await readFile(join(straight, file)));

  const described = JSON.parse(await readFile(join(straight, 'adapter/adapter_config.json'), 'utf8'));
  assert.deepEqual(
    [described.r, described.lora_alpha, described.target_modules, described.layers_to_transform],
    [2, 4, ['q_proj', 'up_proj'], [1]],
  );
  const adapter = await openSafetensors(join(straight, 'adapter/adapter_model.safetensors'));
  const prefix = 'base_model.model.model.layers.1.';
  assert.deepEqual([...adapter.tensors.keys()].sort(), [
    `${prefix}mlp.up_proj.lora_A.weight`,
    `${prefix}mlp.up_proj.lora_B.weight`,
    `${prefix}self_attn.q_proj.lora_A.weight`,
    `${prefix}self_attn.q_proj.lora_B.weight`,
  ]);
  const after = await openSafetensors(join(straight, 'model.safetensors'));
  for (const name of base.tensors.keys()) {
    const [was, is] = [await base.read(name, 'float32'), await after.read(name, 'float32')];
    const linear = /^model\.layers\.1\.(self_attn\.q_proj|mlp\.up_proj)\.weight$/.exec(name)?.[1];
    if (linear === undefined) {
      assert.deepEqual(is, was, name);
      continue;
    }
    const [outSize, inSize] = base.tensors.get(name)!.shape as [number, number];
    const [a, b] = [
      await adapter.read(`${prefix}${linear}.lora_A.weight`, 'float64'),
      await adapter.read(`${prefix}${linear}.lora_B.weight`, 'float64'),
    ];
    assert.ok(b.some((x) => x !== 0));
    const product = multiply(b, a, [outSize, 2, inSize]);
    expectClose(
      is,
      was.map((x, i) => x + 2 * product[i]!),
      { absolute: 1e-6, where: name },
    );
  }
  await Promise.all([adapter.close(), after.close()]);
});

test('settings that say nothing together are refused', () => {
  const cases: readonly [code: string, given: Partial<TrainingSettings>, message: RegExp][] = [
    [
      'SETTING_UNUSED',
      { loraRank: undefined, loraAlpha: 4 },
      /--lora-alpha: there are no adapters without --lora-rank/,
    ],
    ['SETTING_UNUSED', { loraRank: undefined, loraTargets: ['q_proj'] }, /--lora-targets/],
    ['TRAIN_LAYERS_NOT_FOR_LORA', { trainLayers: ['last-1', 'norm'] }, /layers only, got last-1,norm/],
    ['TRAIN_LAYERS_INVALID', { trainLayers: [7] }, /the student has 2 layers/],
  ];
  for (const [code, given, message] of cases) {
    assert.throws(
      () => resolveLearning(settings(given), config),
      (error) => {
        assert.ok(isStillhouseError(error, code), `${code}: ${error}`);
        assert.match(error.message, message);
        return true;
      },
    );
  }
  assert.throws(() => settings({ loraTargets: ['lm_head' as 'q_proj'] }), /--lora-targets.*q_proj, k_proj/);
});
