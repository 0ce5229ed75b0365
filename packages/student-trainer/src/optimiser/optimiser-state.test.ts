import assert from 'node:assert/strict';
import { readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { openSafetensors } from '@stillhouse/checkpoint';
import { isStillhouseError } from '@stillhouse/errors';
import { openEngine } from '@stillhouse/runtime';
import { expectClose, makeTemporaryFolder, randomNormals } from '@stillhouse/testing';
import { afterAll, test } from 'vitest';
import { type TrainingSettings, trainStudent } from '../index.ts';
import type { Parameter } from '../step/parameters.ts';
import { writeSyntheticCache } from '../testing/synthetic-cache.ts';
import { stopAt, TINY_TEACHER, tinyRun } from '../testing/tiny-run.ts';
import { checkOptimiserState, createAdamW } from './adamw.ts';
import { measureMoments, OPTIMISER_STATE_FORMATS, type OptimiserStateFormat } from './optimiser-state.ts';

const engine = await openEngine({ threads: 1 });
afterAll(() => engine.close());

const SETTINGS = { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1, clip: 1 };
const BLOCK = 256;

/** A parameter of each kind: one short block at the end, several chunks, too small for codes. */
const SHAPES = [[70, 67], [2 ** 18 + 300], [4095]] as const;

function openParameters(): readonly Parameter[] {
  const normal = randomNormals(2);
  return SHAPES.map((shape, i) => {
    const count = (shape as readonly number[]).reduce((product, dim) => product * dim, 1);
    const weight = engine.upload(
      Float64Array.from({ length: count }, () => normal()),
      'float64',
      shape,
    );
    return { name: `p${i}`, shape, weight, gradient: engine.allocate('float64', shape) };
  });
}

/** Gradients over many powers of ten, with a block of zeros. */
function drawGradient(count: number, normal: () => number): Float64Array<ArrayBuffer> {
  return Float64Array.from({ length: count }, (_, i) =>
    i >= BLOCK && i < 2 * BLOCK ? 0 : normal() * Math.exp(3 * normal()),
  );
}

const toBfloat16 = (x: number) => {
  const bits = new Uint32Array(Float32Array.of(x).buffer)[0]!;
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff;
};
const normOf = (arrays: readonly Float64Array[]) =>
  Math.sqrt(arrays.flatMap((one) => [...one]).reduce((sum, x) => sum + x * x, 0));
const fromBfloat16 = (bits: number) => new Float32Array(Uint32Array.of(bits << 16).buffer)[0]!;

/** A moment as the format holds it: its codes and what they stand for. */
function store(format: OptimiserStateFormat, moment: 'first' | 'second', values: Float64Array<ArrayBuffer>) {
  const codes = new Float64Array(values.length);
  const read = new Float64Array(values.length);
  if (format === 'float32') return { codes: values, read: values, scales: [] };
  if (format === 'bfloat16') {
    values.forEach((value, i) => {
      codes[i] = toBfloat16(value);
      read[i] = fromBfloat16(codes[i]!);
    });
    return { codes, read, scales: [] };
  }
  const scales: number[] = [];
  for (let from = 0; from < values.length; from += BLOCK) {
    const block = values.subarray(from, from + BLOCK);
    const scale = Math.max(1e-35, ...block.map(Math.abs));
    scales.push(scale);
    block.forEach((value, i) => {
      const share = Math.abs(value) / scale;
      const code =
        moment === 'first'
          ? Math.sign(value) * Math.round(127 * Math.sqrt(share)) + 0
          : Math.max(1, Math.round(255 * Math.sqrt(Math.sqrt(share))));
      codes[from + i] = code;
      read[from + i] = scale * (moment === 'first' ? (code * Math.abs(code)) / 127 ** 2 : (code / 255) ** 4);
    });
  }
  return { codes, read, scales };
}

for (const format of OPTIMISER_STATE_FORMATS) {
  test(`${format} moments over five steps are those of the formulas in float64, codes and weights`, async () => {
    const parameters = openParameters();
    const adamw = await createAdamW(engine, parameters, { ...SETTINGS, optimiserState: format }, 'float64');
    const normal = randomNormals(7);
    const ours = await Promise.all(
      parameters.map(async ({ shape, weight }) => {
        const w = Float64Array.from((await engine.download(weight)) as Float64Array);
        return { shape, w, m: new Float64Array(w.length), v: new Float64Array(w.length) };
      }),
    );
    for (let step = 1; step <= 5; step++) {
      const gradients = ours.map(({ w }) => drawGradient(w.length, normal));
      for (const [i, { gradient }] of parameters.entries()) engine.write(gradient, gradients[i]!);
      const norm = normOf(gradients);
      assert.ok(Math.abs((await adamw.gradientNorm()) / norm - 1) < 1e-12);
      await adamw.update(step, 1e-2, norm);
      const clip = Math.min(1, SETTINGS.clip / (norm + 1e-6));
      for (const [i, one] of ours.entries()) {
        const used = one.w.length < 4096 ? 'float32' : format;
        const m = one.m.map((x, at) => 0.9 * x + 0.1 * clip * gradients[i]![at]!);
        const v = one.v.map((x, at) => 0.95 * x + 0.05 * (clip * gradients[i]![at]!) ** 2);
        const decay = one.shape.length >= 2 ? 1 - 1e-2 * SETTINGS.weightDecay : 1;
        one.w = one.w.map((w, at) => {
          const mean = m[at]! / (1 - 0.9 ** step);
          return w * decay - (1e-2 * mean) / (Math.sqrt(v[at]! / (1 - 0.95 ** step)) + SETTINGS.epsilon);
        });
        const [first, second] = [store(used, 'first', m), store(used, 'second', v)];
        [one.m, one.v] = [first.read, second.read];
        const where = `${format}, step ${step}, parameter ${i}`;
        expectClose((await engine.download(parameters[i]!.weight)) as Float64Array, one.w, { absolute: 1e-11, where });
        for (const [moment, { codes, scales }] of [
          [adamw.state.firstMoments, first],
          [adamw.state.secondMoments, second],
        ] as const) {
          const find = (name: string) => moment.find((tensor) => tensor.name === name)?.tensor;
          const got = await engine.download(find(`p${i}`)!);
          if (used === 'float32') expectClose(got as Float64Array, codes, { absolute: 1e-15, where });
          else assert.deepEqual(Array.from(got as Uint8Array, Number), [...codes], where);
          const scale = find(`p${i}.scale`);
          assert.equal(scale !== undefined, used === 'int8');
          if (scale !== undefined)
            expectClose((await engine.download(scale)) as Float64Array, scales, { relative: 1e-12, where });
        }
      }
    }
  });
}

test('no second moment is ever read as zero beside a first moment that is not', async () => {
  const [parameter] = openParameters().slice(1, 2);
  const adamw = await createAdamW(engine, [parameter!], { ...SETTINGS, optimiserState: 'int8' }, 'float64');
  const before = (await engine.download(parameter!.weight)) as Float64Array;
  const normal = randomNormals(9);
  // One element of each block is a million times the others, then gone.
  const draw = (large: number) =>
    Float64Array.from({ length: before.length }, (_, i) => normal() * (i % BLOCK === 0 ? large : 1e-6));
  for (let step = 1; step <= 6; step++) {
    engine.write(parameter!.gradient, draw(step <= 2 ? 1 : 0));
    await adamw.update(step, 1e-3, 1e-9);
  }
  const after = (await engine.download(parameter!.weight)) as Float64Array;
  // Adam's step is at most lr · (1 - β1) / √(1 - β2) and lr where gradients are alike; ours stay within a few of these.
  const largest = after.reduce((most, w, i) => Math.max(most, Math.abs(w - before[i]!)), 0);
  assert.ok(largest < 6 * 3e-3, `a weight moved by ${largest} in six steps of 1e-3`);
});

const settings = (given: Partial<TrainingSettings>): TrainingSettings => tinyRun({ steps: 5, ...given });

test('checkpoints hold the codes themselves: a resumed run is the uninterrupted one, bit for bit', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const cache = join(folder, 'cache');
  await writeSyntheticCache(cache, TINY_TEACHER);
  const stored = { bfloat16: ['bfloat16', 'bfloat16'], int8: ['int8', 'uint8'] } as const;
  const sizes = new Map<string, number>();
  for (const optimiserState of OPTIMISER_STATE_FORMATS) {
    const [straight, cut] = [join(folder, `straight-${optimiserState}`), join(folder, `cut-${optimiserState}`)];
    await trainStudent(settings({ cache, optimiserState, out: straight }));
    await trainStudent(settings({ cache, optimiserState, out: cut }), stopAt(3));
    const checkpoint = join(cut, 'checkpoints', (await readdir(join(cut, 'checkpoints'))).at(-1)!);
    const moments = ['first-moments.safetensors', 'second-moments.safetensors'].map((file) => join(checkpoint, file));
    const bytes = await Promise.all(moments.map(async (file) => (await stat(file)).size));
    sizes.set(optimiserState, bytes[0]! + bytes[1]!);
    if (optimiserState !== 'float32') {
      for (const [i, file] of moments.entries()) {
        const source = await openSafetensors(file);
        const dtype = (name: string) => source.tensors.get(name)?.dtype;
        assert.equal(dtype('model.embed_tokens.weight'), stored[optimiserState][i]);
        assert.equal(dtype('model.norm.weight'), 'float32');
        assert.equal(dtype('model.embed_tokens.weight.scale'), optimiserState === 'int8' ? 'float32' : undefined);
        await source.close();
      }
    }
    await trainStudent(settings({ cache, optimiserState, out: cut, resume: true }));
    assert.deepEqual(
      await readFile(join(cut, 'model.safetensors')),
      await readFile(join(straight, 'model.safetensors')),
      optimiserState,
    );
  }
  assert.ok(sizes.get('bfloat16')! < 0.6 * sizes.get('float32')!);
  assert.ok(sizes.get('int8')! < 0.4 * sizes.get('float32')!);
});

test('bytes of moments: 8, 4 and a little over 2 a number', () => {
  const bytes = (format: OptimiserStateFormat) => measureMoments(format, 1_000_000) / 1_000_000;
  assert.deepEqual([bytes('float32'), bytes('bfloat16')], [8, 4]);
  assert.ok(Math.abs(bytes('int8') - 2.03) < 0.01);
  assert.equal(measureMoments('int8', 100), 800);
});

test('betas under which a bfloat16 moment would stand still are refused, and devices without such tensors', async () => {
  const create = (changes: object) =>
    createAdamW(engine, [], { ...SETTINGS, optimiserState: 'bfloat16', ...changes }, 'float32');
  for (const [changes, message] of [
    [{ beta2: 0.999 }, /bfloat16, --beta2.*at most 0\.996, got 0\.999.*int8/],
    [{ beta1: 0.9999 }, /--beta1/],
  ] as const) {
    await assert.rejects(create(changes), (error) => {
      assert.ok(isStillhouseError(error, 'OPTIMISER_STATE_TOO_COARSE'), String(error));
      assert.match(error.message, message);
      return true;
    });
  }
  for (const [optimiserState, device] of [
    ['bfloat16', 'webgpu'],
    ['int8', 'webgpu'],
    ['bfloat16', 'cuda'],
  ] as const) {
    assert.throws(
      () => checkOptimiserState({ ...SETTINGS, optimiserState }, device),
      (error) => isStillhouseError(error, 'OPTIMISER_STATE_NOT_ON_DEVICE'),
    );
  }
  checkOptimiserState({ ...SETTINGS, optimiserState: 'int8' }, 'cuda');
  // At the limit itself every number still decays.
  for (let bits = 0x3f80; bits < 0x4000; bits++) assert.ok(toBfloat16(0.996 * fromBfloat16(bits)) < bits);
});
