import type { DeviceTensor } from '@stillhouse/runtime';
import { type CachedDecoder, type CachedPass, headCall, openCachedPass, runAndRead } from './cached-pass.ts';
import { freeStore, type KeyValueStore, viewRows } from './key-value-store.ts';
import type { Sequence } from './sequence.ts';

/** Gives each sequence its next id. Its tensors stay for as long as the number of rows and the store do. */
export interface DecodeStep {
  /**
   * @param active the sequences of the first rows of the store, each with a new id that has no key yet
   * @returns the next id of each
   */
  run(active: readonly Sequence[], store: KeyValueStore): Promise<BigInt64Array>;
  /** Before the store is freed or replaced. */
  close(): void;
}

interface Open {
  readonly store: KeyValueStore;
  /** The rows that are in use. */
  readonly rows: KeyValueStore;
  readonly pass: CachedPass;
  readonly next: DeviceTensor;
}

export function createDecodeStep(decoder: CachedDecoder): DecodeStep {
  const { engine, model } = decoder;
  let open: Open | undefined;
  const close = () => {
    if (open === undefined) return;
    open.pass.close();
    freeStore(engine, open.rows);
    engine.free(open.next);
    open = undefined;
  };
  const openFor = (count: number, store: KeyValueStore): Open => {
    if (open?.store === store && open.rows.rows === count) return open;
    close();
    const rows = viewRows(engine, model.config, store, { first: 0, rows: count });
    open = { store, rows, pass: openCachedPass(decoder, rows, 1), next: engine.allocate('int64', [count]) };
    return open;
  };
  return {
    close,
    run: (active, store) => {
      const { pass, next } = openFor(active.length, store);
      const ids = BigInt64Array.from(active, (sequence) => BigInt(sequence.ids.at(-1)!));
      const positions = Int32Array.from(active, (sequence) => sequence.prompt.length + sequence.ids.length - 1);
      return runAndRead(engine, [...pass.take(ids, positions), headCall(decoder, pass.x, next)], next);
    },
  };
}
