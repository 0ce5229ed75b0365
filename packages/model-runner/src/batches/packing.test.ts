import assert from 'node:assert/strict';
import { emitSegmentBias } from '@stillhouse/decoder';
import { GraphBuilder } from '@stillhouse/onnx-graph';
import { openEngine } from '@stillhouse/runtime';
import fc from 'fast-check';
import { afterAll, test } from 'vitest';
import {
  blockCall,
  compileForwardPrograms,
  embeddingCall,
  flatIndex,
  freeBatch,
  loadDecoder,
  packSequences,
  type TokenBatch,
  takeLayerPrograms,
  uploadBatch,
} from '../index.ts';

const engine = await openEngine({ threads: 1 });
afterAll(() => engine.close());

const sequences = fc
  .array(fc.array(fc.integer({ min: 0, max: 500 }), { minLength: 1, maxLength: 9 }), { minLength: 2, maxLength: 7 })
  .map((lists) => lists.map((list) => Int32Array.from(list)));
/** From whatever leaves the least padding to rows no longer than the longest sequence. */
const columnCosts = fc.constantFrom(0, 0.02, 0.2, 5);

test('a position sees itself and what is before it in its own sequence, and nothing else', async () => {
  const g = new GraphBuilder('bias', 'float32');
  const bias = emitSegmentBias(g, g.input('segments', 'int32', ['B', 'T']), g.input('columns', 'int32', ['T']));
  g.output('bias', bias);
  const program = await engine.compile(g);
  await fc.assert(
    fc.asyncProperty(sequences, columnCosts, async (given, columnCost) => {
      const batch = packSequences(given, columnCost);
      const { rows, length } = batch;
      const inputs = {
        segments: engine.upload(batch.segments, 'int32', [rows, length]),
        columns: engine.upload(
          Int32Array.from({ length }, (_, t) => t),
          'int32',
          [length],
        ),
      };
      const out = engine.allocate('float32', [rows, 1, 1, length, length]);
      await engine.run([{ kind: 'run', program, inputs, outputs: { bias: out } }]);
      const values = (await engine.download(out)) as Float32Array;
      const owner = new Map<number, readonly [sequence: number, t: number]>();
      for (const placement of batch.placements) {
        for (let t = 0; t < placement.length; t++)
          owner.set(flatIndex(batch, placement, t), [placement.sequence, t] as const);
      }
      for (let row = 0; row < rows; row++) {
        for (let t = 0; t < length; t++) {
          for (let s = 0; s < length; s++) {
            const [query, key] = [owner.get(row * length + t), owner.get(row * length + s)];
            const isSeen = query?.[0] === key?.[0] && (query === undefined ? s <= t : key![1] <= query[1]);
            assert.equal(values[(row * length + t) * length + s] === 0, isSeen, `row ${row}: ${t} and ${s}`);
          }
        }
      }
    }),
    { numRuns: 40 },
  );
});

test('other sequences of a row may be any: the states of a sequence do not change by a bit', async () => {
  const folder = new URL('../../../../test/golden/qwen2-tiny', import.meta.url).pathname;
  const { config, embedding, layers } = await loadDecoder(engine, folder);
  const programs = await compileForwardPrograms(engine, config, 'float32');
  const statesOf = async (batch: TokenBatch, sequence: number) => {
    const layer = await takeLayerPrograms(programs, batch);
    const tensors = uploadBatch(engine, programs, batch);
    const [a, b] = [0, 1].map(() => engine.allocate('float32', [tensors.tokens, config.hiddenSize])) as [never, never];
    await engine.run([
      ...tensors.biasCalls,
      embeddingCall(programs, tensors, embedding, a),
      blockCall(layer, tensors, { weights: layers[0]!, x: a, y: b }),
      blockCall(layer, tensors, { weights: layers[1]!, x: b, y: a }),
    ]);
    const values = (await engine.download(a)) as Float32Array;
    freeBatch(engine, tensors);
    const start = flatIndex(batch, batch.placements[sequence]!, 0) * config.hiddenSize;
    return values.slice(start, start + batch.placements[sequence]!.length * config.hiddenSize);
  };
  await fc.assert(
    fc.asyncProperty(sequences, columnCosts, fc.nat(), async (given, columnCost, choice) => {
      const own = choice % given.length;
      const changed = given.map((ids, i) => (i === own ? ids : ids.map((id) => (id * 7 + 13) % config.vocabSize)));
      const before = await statesOf(packSequences(given, columnCost), own);
      assert.deepEqual(await statesOf(packSequences(changed, columnCost), own), before);
    }),
    { numRuns: 25 },
  );
});
