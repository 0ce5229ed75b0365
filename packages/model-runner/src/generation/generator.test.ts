import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import {
  createModelWeights,
  FINAL_NORM_NAME,
  openSafetensors,
  readModelConfig,
  type TensorSource,
} from '@stillhouse/checkpoint';
import { greedyHeadGraph } from '@stillhouse/decoder';
import { isStillhouseError } from '@stillhouse/errors';
import type { FloatDtype } from '@stillhouse/onnx-graph';
import { openEngine } from '@stillhouse/runtime';
import { expectClose } from '@stillhouse/testing';
import { afterAll, test } from 'vitest';
import {
  compileForwardPrograms,
  createGenerator,
  type DecoderOnDevice,
  loadDecoder,
  openResidentPass,
  packSequences,
  padSequences,
} from '../index.ts';

const engine = await openEngine({ threads: 1 });
afterAll(() => engine.close());

const GOLDEN = new URL('../../../../test/golden/', import.meta.url).pathname;
const MODELS = ['qwen2-tiny', 'qwen2-tiny-untied', 'llama-tiny', 'llama3-rope-tiny'];

/** The argmax of a whole forward pass over ids, again for every new token: no cache. */
async function continueByFullPasses(model: DecoderOnDevice, prompt: Int32Array, count: number): Promise<number[]> {
  const programs = await compileForwardPrograms(engine, model.config, model.float);
  const head = await engine.compile(greedyHeadGraph(model.config, model.float));
  const ids = [...prompt];
  for (let i = 0; i < count; i++) {
    const pass = await openResidentPass(engine, programs, model, padSequences([Int32Array.from(ids)]));
    const next = engine.allocate('int64', [pass.x.shape[0]!]);
    const inputs = { x: pass.x, norm: model.norm, head: model.head };
    await engine.run([...pass.embed, ...pass.layers, { kind: 'run', program: head, inputs, outputs: { next } }]);
    ids.push(Number((await engine.download(next)).at(-1)));
    pass.close();
    engine.free(next);
  }
  return ids.slice(prompt.length);
}

/** Prompts of different lengths out of a golden's ids. */
async function readPrompts(name: string): Promise<readonly Int32Array[]> {
  const inputs = await openSafetensors(`${GOLDEN}${name}/inputs.safetensors`);
  const length = inputs.tensors.get('input_ids')!.shape[1]!;
  const ids = Int32Array.from((await inputs.readInt('input_ids')) as unknown as ArrayLike<bigint>, Number);
  await inputs.close();
  const row = (index: number, count: number) => ids.slice(index * length, index * length + count);
  return [row(0, 7), row(1, 12), row(0, 1), row(1, 3), row(0, length)];
}

/** The 256 ids that the trained model continues its BOS token with. */
async function readStory(): Promise<number[]> {
  const golden = JSON.parse(await readFile(`${GOLDEN}stories260k/golden.json`, 'utf8'));
  return (golden as { readonly greedy_ids: number[] }).greedy_ids;
}

const generated = (results: readonly { readonly ids: Int32Array }[]) => results.map(({ ids }) => [...ids]);

for (const name of MODELS) {
  for (const float of ['float32', 'float64'] satisfies FloatDtype[]) {
    test(`${name}: the KV cache generates what whole forward passes do, ${float}`, async () => {
      const model = await loadDecoder(engine, `${GOLDEN}${name}`, float);
      const prompts = await readPrompts(name);
      const maxNewTokens = 10;
      const expected = await Promise.all(prompts.map((prompt) => continueByFullPasses(model, prompt, maxNewTokens)));
      // Few slots at a time and few prompt columns at a time, so that the cache grows and prompts come in pieces.
      for (const options of [{}, { slotStep: 3, prefillTokens: 8 }, { maxSequences: 2, slotStep: 1 }]) {
        const generator = await createGenerator(engine, model, options);
        const results = await generator.generateGreedy(prompts, { maxNewTokens, stopIds: [] });
        assert.deepEqual(generated(results), expected, JSON.stringify(options));
        assert.ok(results.every(({ finishedBy }) => finishedBy === 'length'));
        generator.close();
      }
      model.free();
    });
  }
}

test('the trained model tells its golden story', async () => {
  const model = await loadDecoder(engine, `${GOLDEN}stories260k`);
  const generator = await createGenerator(engine, model);
  const [story] = await generator.generateGreedy([Int32Array.of(1)], {
    maxNewTokens: 256,
    stopIds: model.config.eosTokenIds,
  });
  assert.deepEqual([...story!.ids], await readStory());
  assert.equal(story!.finishedBy, 'length');
});

test('sequences that stop leave the batch; the others go on unchanged', async () => {
  const model = await loadDecoder(engine, `${GOLDEN}stories260k`);
  const story = await readStory();
  const prompts = [1, 30, 6, 14, 22].map((count) => Int32Array.from([1, ...story.slice(0, count)]));
  const generator = await createGenerator(engine, model, { slotStep: 4 });
  const free = generated(await generator.generateGreedy(prompts, { maxNewTokens: 20, stopIds: [] }));
  // What the story says at two places; other prompts come to it sooner or later or never.
  const stopIds = [story[18]!, story[39]!];
  const expected = free.map((ids) => {
    const end = ids.findIndex((id) => stopIds.includes(id));
    return end < 0 ? { ids, finishedBy: 'length' } : { ids: ids.slice(0, end), finishedBy: 'stop' };
  });
  assert.ok(new Set(expected.map(({ ids }) => ids.length)).size > 2, 'the case must end sequences at several times');
  const told: number[][] = prompts.map(() => []);
  const onToken = (sequence: number, id: number) => void told[sequence]!.push(id);
  const before = (await engine.memory()).allocatedBytes;
  const ended: number[] = [];
  const onSequence = (sequence: number) => void ended.push(sequence);
  const results = await generator.generateGreedy(prompts, { maxNewTokens: 20, stopIds, onToken, onSequence });
  assert.equal((await engine.memory()).allocatedBytes, before, 'generation must give its memory back');
  assert.deepEqual(
    results.map(({ ids, finishedBy }) => ({ ids: [...ids], finishedBy })),
    expected,
  );
  assert.deepEqual(told, generated(results));
  assert.deepEqual([...ended].sort(), [0, 1, 2, 3, 4]);
  const lengths = ended.map((sequence) => results[sequence]!.ids.length);
  assert.deepEqual(
    lengths,
    lengths.toSorted((a, b) => a - b),
    'the shortest answer is told first',
  );
});

test('a full context ends a sequence', async () => {
  const loaded = await loadDecoder(engine, `${GOLDEN}qwen2-tiny`);
  const model = { ...loaded, config: { ...loaded.config, maxPositions: 10 } };
  const generator = await createGenerator(engine, model);
  const [result] = await generator.generateGreedy([Int32Array.of(5, 6, 7)], { maxNewTokens: 99, stopIds: [] });
  assert.equal(result!.ids.length, 7);
  assert.equal(result!.finishedBy, 'length');
});

test('prompts that cannot be continued are refused', async () => {
  const model = await loadDecoder(engine, `${GOLDEN}qwen2-tiny`);
  const generator = await createGenerator(engine, model);
  const refused = (prompt: Int32Array, code: string) =>
    assert.rejects(
      generator.generateGreedy([Int32Array.of(1), prompt], { maxNewTokens: 1, stopIds: [] }),
      (error) => isStillhouseError(error, code) && error.report.where === 'prompt 1',
    );
  await refused(new Int32Array(0), 'PROMPT_EMPTY');
  await refused(Int32Array.of(3, model.config.vocabSize), 'PROMPT_ID_UNKNOWN');
  await refused(Int32Array.of(-1), 'PROMPT_ID_UNKNOWN');
  await refused(new Int32Array(model.config.maxPositions), 'PROMPT_LONGER_THAN_CONTEXT');
});

test('a generator that was closed refuses, and nothing stays on the device', async () => {
  const model = await loadDecoder(engine, `${GOLDEN}qwen2-tiny`);
  const generator = await createGenerator(engine, model);
  const before = (await engine.memory()).allocatedBytes;
  generator.close();
  await assert.rejects(generator.generateGreedy([Int32Array.of(5, 6)], { maxNewTokens: 2, stopIds: [] }), (error) =>
    isStillhouseError(error, 'PROGRAM_RELEASED'),
  );
  assert.equal((await engine.memory()).allocatedBytes, before);
});

test('packed rows give the residual stream of each row alone', async () => {
  const model = await loadDecoder(engine, `${GOLDEN}llama-tiny`, 'float64');
  const config = await readModelConfig(`${GOLDEN}llama-tiny`);
  const programs = await compileForwardPrograms(engine, config, 'float64');
  const states = async (sequences: readonly Int32Array[]) => {
    const batch = packSequences(sequences);
    const pass = await openResidentPass(engine, programs, model, batch);
    await engine.run([...pass.embed, ...pass.layers]);
    const data = (await engine.download(pass.x)) as Float64Array;
    pass.close();
    return batch.placements.map(({ row, column, length }) => {
      const start = (row * batch.length + column) * config.hiddenSize;
      return data.slice(start, start + length * config.hiddenSize);
    });
  };
  const sequences = [Int32Array.of(1, 2, 3, 4, 5, 6, 7), Int32Array.of(9, 8, 7), Int32Array.of(4, 4, 4)];
  const together = await states(sequences);
  for (const [i, sequence] of sequences.entries()) {
    const [alone] = await states([sequence]);
    expectClose(together[i]!, alone!, { absolute: 1e-11, where: `sequence ${i}` });
  }
});

test('weights that are not finite are refused, and nothing stays on the device', async () => {
  const folder = `${GOLDEN}qwen2-tiny`;
  const config = await readModelConfig(folder);
  const source = await openSafetensors(`${folder}/model.safetensors`);
  const broken: TensorSource = {
    ...source,
    read: async (name, float) => {
      const data = await source.read(name, float);
      if (name === FINAL_NORM_NAME) data[3] = Number.NaN;
      return data;
    },
  };
  const before = (await engine.memory()).allocatedBytes;
  await assert.rejects(loadDecoder(engine, createModelWeights(broken, config)), (error) =>
    isStillhouseError(error, 'WEIGHT_NOT_FINITE'),
  );
  assert.equal((await engine.memory()).allocatedBytes, before);
  await source.close();
});
