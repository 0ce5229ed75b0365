import type { DeviceTensor, Engine } from '@stillhouse/runtime';

/**
 * Tokens that go through a layer together: enough for the full speed of its products, and few enough that what is
 * computed between them stays in cache, where an element-wise pass takes a third of the time (docs/log.md).
 */
export const TILE_TOKENS = 512;

/** A micro-batch's rows in tiles, which go through each layer one after the other. */
export interface RowTiles {
  readonly count: number;
  /** The tile's rows of tensors whose first dimension is one of the batch's rows, or of all their tokens. */
  cut(tensors: Readonly<Record<string, DeviceTensor>>, tile: number): Readonly<Record<string, DeviceTensor>>;
  /** Ends the views that `cut` gave; to be called before their tensors end. */
  close(): void;
}

/**
 * Boundaries of the tiles: tile i has the rows from `[i]` to `[i + 1]`. Of about equal size; a long row is a tile of
 * its own.
 */
export function tileBoundaries(rows: number, length: number, tileTokens: number): readonly number[] {
  const count = Math.ceil(rows / Math.max(1, Math.floor(tileTokens / length)));
  return Array.from({ length: count + 1 }, (_, i) => Math.floor((i * rows) / count));
}

/** On a device with memory of its own a batch is one tile. */
export function openRowTiles(engine: Engine, rows: number, length: number, tileTokens: number): RowTiles {
  const boundaries = engine.device === 'cpu' ? tileBoundaries(rows, length, tileTokens) : [0, rows];
  const count = boundaries.length - 1;
  const views = new Map<string, DeviceTensor>();
  const cutOne = (tensor: DeviceTensor, tile: number): DeviceTensor => {
    const key = `${tensor.handle} ${tile}`;
    const known = views.get(key);
    if (known !== undefined) return known;
    const [first, ...rest] = tensor.shape as [number, ...number[]];
    const perRow = first / rows;
    const rowElements = rest.reduce((product, dim) => product * dim, perRow);
    const [from, to] = [boundaries[tile]!, boundaries[tile + 1]!];
    const view = engine.view(tensor, { offset: from * rowElements, shape: [(to - from) * perRow, ...rest] });
    views.set(key, view);
    return view;
  };
  return {
    count,
    cut: (tensors, tile) =>
      count === 1
        ? tensors
        : Object.fromEntries(Object.entries(tensors).map(([name, tensor]) => [name, cutOne(tensor, tile)])),
    close: () => {
      for (const view of views.values()) engine.free(view);
      views.clear();
    },
  };
}
