import { openModelWeights, openSafetensors, readModelConfig } from '@stillhouse/checkpoint';
import { padSequences } from '@stillhouse/model-runner';
import { emitCrossEntropy } from '@stillhouse/objectives';
import { type FloatDtype, GraphBuilder } from '@stillhouse/onnx-graph';
import { openEngine } from '@stillhouse/runtime';
import { expectClose } from '@stillhouse/testing';
import { afterAll, test } from 'vitest';
import { batchInputs, emitDecoder, uploadBatchInputs, uploadParameters } from './whole-decoder.ts';

const engine = await openEngine({ threads: 1 });
afterAll(() => engine.close());

const GOLDEN = new URL('./golden/', import.meta.url).pathname;

async function checkModel(name: string, float: FloatDtype): Promise<void> {
  const folder = `${GOLDEN}${name}`;
  const config = await readModelConfig(folder);
  const weights = await openModelWeights(folder, config);
  const inputs = await openSafetensors(`${folder}/inputs.safetensors`);
  const expected = await openSafetensors(`${folder}/${float === 'float64' ? 'expected64' : 'expected'}.safetensors`);
  const [rows, length] = inputs.tensors.get('input_ids')!.shape as [number, number];
  const integers = async (tensor: string) =>
    Array.from((await inputs.readInt(tensor)) as unknown as ArrayLike<bigint>, Number);
  const [ids, labels] = [await integers('input_ids'), await integers('labels')];

  const g = new GraphBuilder('nll', float);
  const { logits } = emitDecoder(g, config, '', batchInputs(g));
  g.output('nll', emitCrossEntropy(g, logits, g.input('labels', 'int64', ['B*T'])));
  const program = await engine.compile(g);
  const batch = padSequences(
    Array.from({ length: rows }, (_, row) => Int32Array.from(ids.slice(row * length, (row + 1) * length))),
  );
  const nll = engine.allocate(float, [rows * length]);
  await engine.run([
    {
      kind: 'run',
      program,
      inputs: {
        ...uploadBatchInputs(engine, batch),
        ...(await uploadParameters(engine, weights, '', float)),
        labels: engine.upload(
          BigInt64Array.from(labels, (label) => BigInt(Math.max(0, label))),
          'int64',
          [rows * length],
        ),
      },
      outputs: { nll },
    },
  ]);
  const computed = Array.from((await engine.download(nll)) as Float64Array, (value, i) => (labels[i]! < 0 ? 0 : value));
  const [absolute, ofMean] = float === 'float64' ? [1e-10, 1e-10] : [5e-5, 1e-5];
  expectClose(computed, await expected.read('nll', 'float64'), { absolute, where: `${name} nll` });
  const mean = computed.reduce((sum, value) => sum + value, 0) / labels.filter((label) => label >= 0).length;
  expectClose([mean], await expected.read('loss', 'float64'), { absolute: ofMean, where: `${name} loss` });
  await weights.close();
}

for (const name of ['qwen2-tiny', 'qwen2-tiny-untied', 'llama-tiny', 'llama3-rope-tiny']) {
  for (const float of ['float32', 'float64'] as const) {
    test(`${name}: negative log-likelihoods and their mean are those of transformers, ${float}`, () =>
      checkModel(name, float));
  }
}
