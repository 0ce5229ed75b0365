import type { DeviceTensor } from '@stillhouse/runtime';
import { type CachedDecoder, headCall, openCachedPass, runAndRead } from './cached-pass.ts';
import { freeStore, type KeyValueStore, viewRows } from './key-value-store.ts';

/** Neighbouring rows of a store and the prompts that begin there, sorted by length. */
export interface PromptRows {
  readonly first: number;
  readonly prompts: readonly Int32Array[];
}

/**
 * Computes whole prompts, some columns at a time, and leaves their keys and values in the rows of the store. Prompts
 * stand left-aligned, padded on the right; the padding's slots are overwritten before a query can see them.
 * @param prefillTokens most tokens at a time
 * @returns the first new id of each
 */
export async function prefill(
  decoder: CachedDecoder,
  store: KeyValueStore,
  { first, prompts }: PromptRows,
  prefillTokens: number,
): Promise<BigInt64Array> {
  const { engine, model } = decoder;
  const rows = prompts.length;
  const longest = prompts.at(-1)!.length;
  const columns = Math.max(1, Math.floor(prefillTokens / rows));
  const own = viewRows(engine, model.config, store, { first, rows });
  const ends = engine.allocate(model.float, [rows, model.config.hiddenSize]);
  const next = engine.allocate('int64', [rows]);
  try {
    for (let from = 0; from < longest; from += columns) {
      await takeColumns({ decoder, store: own, prompts, ends }, from, Math.min(columns, longest - from));
    }
    return await runAndRead(engine, [headCall(decoder, ends, next)], next);
  } finally {
    freeStore(engine, own);
    engine.free(ends);
    engine.free(next);
  }
}

interface Prefill {
  readonly decoder: CachedDecoder;
  readonly store: KeyValueStore;
  readonly prompts: readonly Int32Array[];
  /** [rows, hiddenSize]: the state of each prompt's last token. */
  readonly ends: DeviceTensor;
}

/** Columns `from` to `from + length` of all prompts. */
async function takeColumns({ decoder, store, prompts, ends }: Prefill, from: number, length: number): Promise<void> {
  const { engine, model, programs } = decoder;
  const { hiddenSize } = model.config;
  const pass = openCachedPass(decoder, store, length);
  try {
    const at = Array.from({ length: prompts.length * length }, (_, i) => from + (i % length));
    const ids = BigInt64Array.from(at, (column, i) => BigInt(prompts[Math.floor(i / length)]![column] ?? 0));
    const calls = pass.take(ids, Int32Array.from(at));
    const endsHere = ({ length: end }: Int32Array) => end - 1 >= from && end - 1 < from + length;
    const ending = prompts.flatMap((prompt, row) => (endsHere(prompt) ? [row] : []));
    if (ending.length === 0) return await engine.run(calls);
    const places = BigInt64Array.from(ending, (row) => BigInt(row * length + prompts[row]!.length - 1 - from));
    const indices = engine.upload(places, 'int64', [ending.length]);
    // Sorted by length, the rows that end within these columns are neighbours.
    const part = engine.view(ends, { offset: ending[0]! * hiddenSize, shape: [ending.length, hiddenSize] });
    const inputs = { x: pass.x, indices };
    try {
      await engine.run([...calls, { kind: 'run', program: programs.gatherStates, inputs, outputs: { rows: part } }]);
    } finally {
      engine.free(part);
      engine.free(indices);
    }
  } finally {
    pass.close();
  }
}
