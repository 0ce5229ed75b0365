import type { FloatArrays, ModelWeights } from '@stillhouse/checkpoint';
import type { FloatDtype } from '@stillhouse/onnx-graph';
import type { Engine } from '@stillhouse/runtime';
import { compileForwardPrograms, type ForwardPrograms, releaseForwardPrograms } from '../forward/forward-programs.ts';
import { createStreamedWeights, type StreamedWeights } from '../weights/streamed-weights.ts';
import { openStreamedPass, type PassRow } from './streamed-pass.ts';

/** Tokens of a batch, whatever the rows. */
const BATCH_TOKENS = 2048;

/**
 * What enters a model's output matrix at the wanted positions, rows in order. All rows go through one layer before the
 * next is run, so that memory holds two layers and the rows' residual streams.
 * @returns [n, H], n the positions of all rows
 * @throws StillhouseError WEIGHT_NOT_FINITE
 */
export async function computeFinalStates<Float extends FloatDtype>(
  engine: Engine,
  model: ModelWeights,
  rows: readonly PassRow[],
  float: Float,
): Promise<FloatArrays[Float]> {
  await model.checkFinite();
  const programs = await compileForwardPrograms(engine, model.config, float);
  const weights = createStreamedWeights(engine, model, { float, keepAll: false });
  try {
    return (await runToEnd({ engine, programs, weights }, rows)) as FloatArrays[Float];
  } finally {
    weights.close();
    releaseForwardPrograms(programs);
  }
}

interface Runner {
  readonly engine: Engine;
  readonly programs: ForwardPrograms;
  readonly weights: StreamedWeights;
}

async function runToEnd(runner: Runner, rows: readonly PassRow[]): Promise<FloatArrays[FloatDtype]> {
  const { engine, programs, weights } = runner;
  const { layerCount, hiddenSize } = programs.config;
  const pass = await openStreamedPass(rows, { ...runner, batchTokens: BATCH_TOKENS });
  try {
    for (let layer = 0; layer < layerCount; layer++) {
      const prefetch = () => (layer + 1 < layerCount ? weights.prefetchLayer(layer + 1) : undefined);
      await pass.runLayer(layer, { prefetch });
    }
    const final = await pass.finishStates();
    const values = (await engine.download(final)) as FloatArrays[FloatDtype];
    engine.free(final);
    // The pass has its rows in an order of its own.
    const ordered = values.slice();
    let filled = 0;
    for (const { start, end } of pass.ranges) {
      ordered.set(values.subarray(start * hiddenSize, end * hiddenSize), filled);
      filled += (end - start) * hiddenSize;
    }
    return ordered;
  } finally {
    pass.close();
  }
}

/** Index of each row's first position among those of all rows; one more number at the end. */
export function startsOf(rows: readonly { readonly positions: Int32Array }[]): readonly number[] {
  const starts = [0];
  for (const { positions } of rows) starts.push(starts.at(-1)! + positions.length);
  return starts;
}
