/**
 * `attention.n` is what the attention of layer n (counted from 1) adds to the residual stream: the output of `o_proj`.
 */
export type AttentionLayer = `attention.${number}`;

/**
 * A state of a decoder by name. `final` is the state that enters the output matrix (after the final norm); n is the
 * residual stream after layer n, 0 the embeddings; `attention.n` is described at {@link AttentionLayer}.
 */
export type HiddenLayer = 'final' | number | AttentionLayer;

const ATTENTION = /^attention\.([1-9]\d*)$/;

/** The layer whose attention gives the state, from 1; `undefined` for other states. */
export function attentionLayer(layer: HiddenLayer): number | undefined {
  const depth = typeof layer === 'string' ? ATTENTION.exec(layer)?.[1] : undefined;
  return depth === undefined ? undefined : Number(depth);
}

/** Whether a value names a state of some decoder. */
export function isHiddenLayer(value: unknown): value is HiddenLayer {
  if (value === 'final') return true;
  return typeof value === 'string' ? ATTENTION.test(value) : Number.isSafeInteger(value) && (value as number) >= 0;
}

/** Whether a decoder of so many layers has the state. */
export function hasLayer(layerCount: number, layer: HiddenLayer): boolean {
  return layer === 'final' || (attentionLayer(layer) ?? (layer as number)) <= layerCount;
}

/** The states that a decoder of so many layers has, for messages. */
export const nameLayers = (layerCount: number): string =>
  `final, 0 to ${layerCount} or attention.1 to attention.${layerCount}`;

/** The state in words. */
export function describeHiddenLayer(layer: HiddenLayer): string {
  if (layer === 'final') return 'after the final norm';
  if (layer === 0) return 'the embeddings';
  const attention = attentionLayer(layer);
  return attention === undefined
    ? `the residual stream after layer ${layer}`
    : `the output of the attention of layer ${attention}`;
}

const rank = (layer: HiddenLayer): readonly [number, number] => {
  if (layer === 'final') return [0, 0];
  return typeof layer === 'number' ? [1, layer] : [2, attentionLayer(layer)!];
};

/** The order in which a cache names layers: `final`, numbers ascending, attention outputs ascending. */
export function compareLayers(a: HiddenLayer, b: HiddenLayer): number {
  const [left, right] = [rank(a), rank(b)];
  return left[0] - right[0] || left[1] - right[1];
}
