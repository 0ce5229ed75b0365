import assert from 'node:assert/strict';
import { openSafetensors } from '@stillhouse/checkpoint';
import { gradientError } from '@stillhouse/gradient-check';
import { openEngine } from '@stillhouse/runtime';
import { expectClose } from '@stillhouse/testing';
import { afterAll, test } from 'vitest';
import { emitHiddenLoss, type FeatureMatch, featureLossGraph } from './feature-match.ts';

const engine = await openEngine({ threads: 1 });
afterAll(() => engine.close());

const GOLDEN = new URL('../../../../test/golden/features/losses.safetensors', import.meta.url).pathname;
const KINDS = (['mse', 'cosine'] as const).flatMap((loss) =>
  (['none', 'rms', 'layer'] as const).map((normalisation) => ({ loss, normalisation })),
);
const [N, H, D] = [7, 12, 20];

for (const float of ['float32', 'float64'] as const) {
  test(`distances of normalised states and their gradients are those of PyTorch, ${float}`, async () => {
    const golden = await openSafetensors(GOLDEN);
    const absolute = float === 'float64' ? 1e-12 : 5e-6;
    const upload = async (name: string, shape: readonly number[]) =>
      engine.upload(
        float === 'float64' ? await golden.read(name, 'float64') : await golden.read(name, 'float32'),
        float,
        shape,
      );
    for (const { loss, normalisation } of KINDS) {
      const match: FeatureMatch = {
        student: 3,
        teacher: 5,
        teacherHidden: D,
        hasProjection: true,
        ...{ loss, normalisation },
      };
      const graph = featureLossGraph(match, { hiddenSize: H, rmsNormEpsilon: 1e-6 }, float);
      const program = await engine.compile(graph);
      const weight = engine.allocate(float, []);
      engine.fill(weight, 3);
      const accumulator = engine.allocate(float, [D, H]);
      engine.fill(accumulator, 1);
      const outputs = {
        dx: engine.allocate(float, [N, H]),
        'gradient.projection.sum': accumulator,
        sums: engine.allocate(float, [2]),
      };
      const inputs = {
        x: await upload('student', [N, H]),
        teacher: await upload('teacher', [N, D]),
        weights: await upload('weights', [N]),
        projection: await upload('projection', [D, H]),
        'gradient.projection': accumulator,
        weight,
      };
      await engine.run([{ kind: 'run', program, inputs, outputs }]);
      const key = `${loss}.${normalisation}`;
      const read = async (name: string) => golden.read(name, 'float64');
      const [perToken, weights] = [await read(`per_token.${key}`), await read('weights')];
      const sum = perToken.reduce((total, one, n) => total + one * weights[n]!, 0);
      const where = (what: string) => ({ absolute: 3 * absolute, where: `${what} of ${key}` });
      const download = async (name: keyof typeof outputs) => (await engine.download(outputs[name])) as Float64Array;
      expectClose(await download('sums'), [3 * sum, sum], where('sums'));
      const scaled = (values: Float64Array, more: number) => values.map((one) => 3 * one + more);
      expectClose(await download('dx'), scaled(await read(`d_student.${key}`), 0), where('dx'));
      expectClose(
        await download('gradient.projection.sum'),
        scaled(await read(`d_projection.${key}`), 1),
        where('gradient of the projection, added to what was there'),
      );
    }
  });
}

test('gradients of every distance agree with central differences', async () => {
  for (const { loss, normalisation } of KINDS) {
    const error = await gradientError(engine, {
      inputs: [{ shape: [3, 5] }, { shape: [3, 4] }, { shape: [4, 5] }],
      build: (g, [student, teacher, projection]) => [
        emitHiddenLoss(g, { loss, normalisation }, { student: student!, teacher: teacher!, projection }),
      ],
    });
    assert.ok(error < 1e-8, `${loss} of ${normalisation}: ${error}`);
  }
});

test('of sides at their root mean square the mean square is twice 1 - cosine', async () => {
  const golden = await openSafetensors(GOLDEN);
  const [mse, cosine] = await Promise.all(
    ['mse.rms', 'cosine.none'].map((key) => golden.read(`per_token.${key}`, 'float64')),
  );
  expectClose(
    mse!,
    cosine!.map((one) => 2 * one),
    { absolute: 1e-5, where: 'mse of rms' },
  );
});
