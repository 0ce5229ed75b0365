import assert from 'node:assert/strict';
import { openSafetensors } from '@stillhouse/checkpoint';
import { packSequences } from '@stillhouse/model-runner';
import { openEngine } from '@stillhouse/runtime';
import { dequantiseHidden, type HiddenLayer } from '@stillhouse/teacher-cache';
import { expectClose } from '@stillhouse/testing';
import { afterAll, test } from 'vitest';
import { goldenFolder, readGoldenRows, scoreWith } from '../testing/golden-teachers.ts';

const engine = await openEngine({ threads: 1 });
afterAll(() => engine.close());

for (const name of ['qwen2-tiny', 'llama-tiny']) {
  test(`${name}: attention outputs are those of transformers, and change no other state by a bit`, async () => {
    const { rows } = await readGoldenRows(name);
    const score = (layers: readonly HiddenLayer[], layOut = packSequences) =>
      scoreWith(engine, goldenFolder(name), rows, {
        labels: { topk: null, hidden: { layers, dtype: 'float32' }, head: false },
        positions: 'all',
        batchTokens: 24,
        layOut: (sequences) => layOut(sequences),
      });
    const scored = await score(['final', 1, 2, 'attention.1', 'attention.2']);
    const golden = await openSafetensors(`${goldenFolder('features')}/attention.safetensors`);
    for (const layer of ['attention.1', 'attention.2'] as const) {
      const [, length, width] = golden.tensors.get(`${name}.${layer}`)!.shape as [number, number, number];
      const expected = await golden.read(`${name}.${layer}`, 'float64');
      scored.forEach(({ positions, hidden }, row) => {
        const wanted = Array.from(positions).flatMap((p) => {
          const at = (row * length + p) * width;
          return [...expected.subarray(at, at + width)];
        });
        expectClose(dequantiseHidden(hidden!.get(layer)!), wanted, { absolute: 2e-5, where: `row ${row}, ${layer}` });
      });
    }
    await golden.close();
    const others = ['final', 1, 2] as const;
    const plain = await score(others);
    for (const layer of others) {
      assert.deepEqual(
        scored.map(({ hidden }) => hidden!.get(layer)),
        plain.map(({ hidden }) => hidden!.get(layer)),
      );
    }
    const inBlocks = await score(['attention.2'], (sequences) => packSequences(sequences, undefined, 5));
    const [blocked, whole] = [inBlocks, scored].map((rows) =>
      rows.flatMap(({ hidden }) => [...dequantiseHidden(hidden!.get('attention.2')!)]),
    );
    expectClose(blocked!, whole!, { absolute: 2e-6, where: 'in blocks of queries' });
    // Alone, layers above the last one that is wanted are not computed.
    const alone = await score(['attention.1']);
    assert.deepEqual(
      alone.map(({ hidden }) => hidden!.get('attention.1')),
      scored.map(({ hidden }) => hidden!.get('attention.1')),
    );
  });
}
