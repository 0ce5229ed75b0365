import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { openModelWeights, readModelConfig } from '@stillhouse/checkpoint';
import { createStreamedWeights } from '@stillhouse/model-runner';
import { openEngine } from '@stillhouse/runtime';
import { expectClose, unless } from '@stillhouse/testing';
import { test } from 'vitest';
import { keepScales } from '../testing/golden-teachers.ts';
import { createRowScorer } from './row-scorer.ts';

interface StoredScores {
  readonly temperatures: readonly number[];
  readonly rows: readonly {
    readonly input_ids: readonly number[];
    readonly loss_mask: readonly number[];
    readonly topk_ids: readonly (readonly number[])[];
    readonly topk_logprobs: readonly (readonly number[])[];
    readonly log_z: readonly (readonly number[])[];
  }[];
}

/** What teachers of bfloat16 weights in float32 arithmetic may differ by. */
const TOLERANCE = 2e-3;
const K = 8;
const models = process.env.STILLHOUSE_MODELS;

for (const [name, row] of [
  ['smollm2-135m', ''],
  ['smollm2-135m', '-long'],
  ['qwen2.5-coder-0.5b', ''],
] as const) {
  const folder = join(models ?? '', name);
  const isThere = models !== undefined && (await readModelConfig(folder).then(Boolean, () => false));
  const skip = isThere
    ? false
    : models === undefined
      ? 'STILLHOUSE_MODELS is not set'
      : `STILLHOUSE_MODELS has no ${name}`;
  test(`${name}${row}: top 8 and log Z are those of transformers in float32`, unless(skip), async (t) => {
    const path = new URL(`../../../../test/teacher-scores/${name}${row}.json`, import.meta.url);
    const stored = JSON.parse(await readFile(path, 'utf8')) as StoredScores;
    const config = await readModelConfig(folder);
    const source = await openModelWeights(folder, config);
    t.onTestFinished(() => source.close());
    const engine = await openEngine();
    t.onTestFinished(() => engine.close());
    const weights = createStreamedWeights(engine, source, { float: 'float32', keepAll: false });
    const scorer = await createRowScorer(engine, config, weights, {
      labels: { topk: { k: K, temperatures: stored.temperatures }, hidden: null, head: false },
      positions: 'response',
      batchTokens: 1024,
    });
    const rows = stored.rows.map((row, i) => ({
      id: `row-${i}`,
      inputIds: Int32Array.from(row.input_ids),
      lossMask: Uint8Array.from(row.loss_mask),
    }));
    const scored = await scorer.score(rows, keepScales());
    for (const [i, { positions, topk }] of scored.entries()) {
      const wanted = stored.rows[i]!;
      assert.equal(positions.length, wanted.topk_ids.length);
      expectClose(topk!.logprobs, wanted.topk_logprobs.flat(), {
        absolute: TOLERANCE,
        where: `row ${i}, logprobs by rank`,
      });
      expectClose(topk!.logZ, wanted.log_z.flat(), { absolute: TOLERANCE, where: `row ${i}, log Z` });
      for (let p = 0; p < positions.length; p++) {
        const logprobs = wanted.topk_logprobs[p]!;
        for (let rank = 0; rank < K; rank++) {
          // Ids closer than rounding, and the last, whose rival is not stored, may come in another order.
          const gaps = [logprobs[rank - 1] ?? Infinity, logprobs[rank + 1] ?? logprobs[rank]!].map((other) =>
            Math.abs(other - logprobs[rank]!),
          );
          if (Math.min(...gaps) <= TOLERANCE) continue;
          assert.equal(topk!.ids[p * K + rank], wanted.topk_ids[p]![rank], `row ${i}, position ${p}, rank ${rank}`);
        }
      }
    }
  });
}
