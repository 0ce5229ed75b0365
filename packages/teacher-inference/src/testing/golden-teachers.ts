import { openModelWeights, openSafetensors, readModelConfig } from '@stillhouse/checkpoint';
import { createStreamedWeights } from '@stillhouse/model-runner';
import type { Engine } from '@stillhouse/runtime';
import type { CachedRow, HiddenLayer, HiddenScale, LabelledRow } from '@stillhouse/teacher-cache';
import { createRowScorer, type LayerScales, type ScoringOptions } from '../scoring/row-scorer.ts';

export const GOLDEN_TEACHERS = ['qwen2-tiny', 'qwen2-tiny-untied', 'llama-tiny', 'llama3-rope-tiny'];
export const goldenFolder = (name: string) => new URL(`../../../../test/golden/${name}`, import.meta.url).pathname;

/** What transformers computes for a row: [L, width], flat. */
export type ExpectedRow = Readonly<Record<string, Float64Array>>;

/** The rows of a golden model and what is expected of each: `logits`, `hidden.0` to `hidden.2`, `hidden.norm`. */
export async function readGoldenRows(name: string) {
  const config = await readModelConfig(goldenFolder(name));
  const inputs = await openSafetensors(`${goldenFolder(name)}/inputs.safetensors`);
  const expected = await openSafetensors(`${goldenFolder(name)}/expected.safetensors`);
  const [count, length] = inputs.tensors.get('input_ids')!.shape as [number, number];
  const numbers = async (tensor: string) => Array.from((await inputs.readInt(tensor)) as BigInt64Array, Number);
  const [ids, real, targets] = [
    await numbers('input_ids'),
    await numbers('attention_mask'),
    await numbers('loss_mask'),
  ];
  const names = ['logits', 'hidden.0', 'hidden.1', 'hidden.2', 'hidden.norm'];
  const values = new Map(
    await Promise.all(names.map(async (key) => [key, await expected.read(key, 'float64')] as const)),
  );
  await inputs.close();
  await expected.close();
  const rows: CachedRow[] = [];
  const answers: ExpectedRow[] = [];
  for (let row = 0; row < count; row++) {
    const at = row * length;
    const size = real.slice(at, at + length).filter((bit) => bit === 1).length;
    rows.push({
      id: `row-${row}`,
      inputIds: Int32Array.from(ids.slice(at, at + size)),
      // The goldens' mask is by position, the cache's by token.
      lossMask: Uint8Array.from([0, ...targets.slice(at, at + size - 1)]),
    });
    const cut = (array: Float64Array) => {
      const width = array.length / (count * length);
      return array.slice(at * width, (at + size) * width);
    };
    answers.push(Object.fromEntries([...values].map(([key, array]) => [key, cut(array)])));
  }
  return { config, rows, expected: answers };
}

/** Scales that are kept for as long as a test runs. */
export function keepScales(): LayerScales {
  const known = new Map<HiddenLayer, HiddenScale>();
  return {
    scale: (layer) => known.get(layer),
    setScale: async (layer, scale) => {
      known.set(layer, scale);
    },
  };
}

/** Scores rows with the model of a folder. */
export async function scoreWith(
  engine: Engine,
  folder: string,
  rows: readonly CachedRow[],
  options: ScoringOptions & { readonly scales?: LayerScales; readonly keepAll?: boolean },
): Promise<readonly LabelledRow[]> {
  const { scales = keepScales(), keepAll = false, ...scoring } = options;
  const source = await openModelWeights(folder, await readModelConfig(folder));
  try {
    const weights = createStreamedWeights(engine, source, { float: 'float32', keepAll });
    const scorer = await createRowScorer(engine, source.config, weights, scoring);
    return await scorer.score(rows, scales);
  } finally {
    await source.close();
  }
}
