import { execFileSync, spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { dequantiseHidden, type TeacherCache } from '@stillhouse/teacher-cache';

export const python = process.env.STILLHOUSE_PYTHON;
/** A clone of github.com/arcee-ai/DistillKit, version 1.0. */
export const distillKit = process.env.STILLHOUSE_DISTILLKIT;

/** Why a test cannot run: no Python was named, or it lacks one of the modules. False if it can. */
export function skipWithout(...modules: readonly string[]): string | false {
  const all = ['pyarrow', 'polars', ...modules];
  if (python === undefined) return `set STILLHOUSE_PYTHON to a python with ${all.join(', ')}`;
  const missing = all.filter((name) => spawnSync(python, ['-c', `import ${name}`]).status !== 0);
  return missing.length === 0 ? false : `${python} has no ${missing.join(', ')}`;
}

export function skipWithoutDistillKit(...modules: readonly string[]): string | false {
  if (distillKit === undefined) return 'set STILLHOUSE_DISTILLKIT to a clone of github.com/arcee-ai/DistillKit';
  return skipWithout('torch', 'pydantic', 'transformers', ...modules);
}

export const runPython = (script: string, ...args: readonly string[]): string =>
  execFileSync(python!, [fileURLToPath(new URL(`./${script}`, import.meta.url)), ...args], {
    encoding: 'utf8',
    maxBuffer: 1 << 28,
    // Nothing here may be fetched.
    env: { ...process.env, HF_HUB_OFFLINE: '1', HF_DATASETS_OFFLINE: '1' },
  });

const builder = new URL('../../packages/cache-exchange/src/testing/build-random-cache.ts', import.meta.url);

export function buildCache(folder: string, shape: object): void {
  execFileSync(process.execPath, ['--import', 'tsx', fileURLToPath(builder), folder, JSON.stringify(shape)]);
}

/** Cuts flat values into lists of the given lengths. */
export function cutLists(values: ArrayLike<number>, lengths: ArrayLike<number>): number[][] {
  let start = 0;
  return Array.from(lengths, (length) => {
    start += length;
    return Array.from(values).slice(start - length, start);
  });
}

/** The rows of a cache as a nested export is to have them: L - 1 entries, empty ones where nothing is stored. */
export async function readSpreadRows(cache: TeacherCache): Promise<Record<string, unknown>[]> {
  const layers = cache.openLabels.hidden ?? [];
  const scales = new Map(
    await Promise.all(layers.map(async (layer) => [layer, await cache.hiddenScale(layer)] as const)),
  );
  const rows: Record<string, unknown>[] = [];
  for await (const { row, positions, topk, hidden } of cache.rows()) {
    const { counts, ids, logprobs, logZ } = topk!;
    const places = new Map([...positions].map((position, place) => [position, place]));
    const spread = (lists: readonly (readonly number[])[]) =>
      Array.from({ length: row.inputIds.length - 1 }, (_, position) => lists[places.get(position) ?? -1] ?? []);
    const even = (values: ArrayLike<number>) =>
      spread(cutLists(values, Array(counts.length).fill(values.length / counts.length)));
    rows.push({
      row_id: row.id,
      input_ids: [...row.inputIds],
      loss_mask: [...row.lossMask],
      task: row.task ?? null,
      split: row.split ?? null,
      source: row.source ?? null,
      answer: row.answer ?? null,
      topk_ids: spread(cutLists(ids, counts)),
      topk_logprobs: spread(cutLists(logprobs, counts)),
      log_z: even(logZ),
      ...Object.fromEntries(
        layers.map((layer) => [`hidden_${layer}`, even(dequantiseHidden(hidden!.get(layer)!, scales.get(layer)))]),
      ),
    });
  }
  return rows;
}
