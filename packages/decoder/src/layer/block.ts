import type { ModelConfig } from '@stillhouse/checkpoint';
import type { GraphBuilder, Value } from '@stillhouse/onnx-graph';
import { multiplyDims } from '@stillhouse/tensor-types';
import { type BlockedBias, emitBlockedAttention } from '../attention/blocked-attention.ts';
import type { RotaryTables } from '../attention/rotary.ts';
import { emitSoftmaxAttention } from '../attention/softmax-attention.ts';
import { type AdapterValues, emitAdapter } from './low-rank-adapter.ts';

/** The weights of one layer by their local name, e.g. `self_attn.q_proj.weight`, in checkpoint layout. */
export type BlockWeights = ReadonlyMap<string, Value>;

export interface KeyValueCache {
  /** [B·kvHeads·S, headDim] each: one row a slot. */
  readonly keys: Value;
  readonly values: Value;
  /** int64 [B·kvHeads·T, 1]: the slot row that each new key goes to, in order (row, KV head, column). */
  readonly slotRows: Value;
  /** S, the number of slots a row has. */
  readonly slots: string;
}

export interface BlockInputs {
  /** [B·T, hidden]: the residual stream before the layer. */
  readonly x: Value;
  readonly rotary: RotaryTables;
  /** [B, 1, 1, T, keys]: 0 where attention is allowed, very negative elsewhere; or the same for blocks of queries. */
  readonly bias: Value | BlockedBias;
  readonly weights: BlockWeights;
  /** Low-rank adapters of linear layers. */
  readonly adapter?: AdapterValues;
  readonly cache?: KeyValueCache;
  /** Whether what attention adds to the residual stream is wanted by itself. Default false. */
  readonly exposesAttention?: boolean;
}

export interface BlockOutputs {
  /** [B·T, hidden]: the residual stream after the layer. */
  readonly x: Value;
  /** [B, kvHeads, heads / kvHeads, T, keys]: softmax of the scores; absent where queries attend block by block. */
  readonly attention?: Value;
  /** [B·T, hidden]: the output of `o_proj`, before it is added to the residual stream; only where it was asked for. */
  readonly attentionOutput?: Value;
  /** The cache with the new keys and values written; only when one was given. */
  readonly cache?: { readonly keys: Value; readonly values: Value };
}

function weight(weights: BlockWeights, name: string): Value {
  const value = weights.get(name);
  if (value === undefined) throw new Error(`block graph: no weight ${name} was given`);
  return value;
}

/**
 * y = addTo + x Wᵀ + b on the matrix `x` [N, in], with the weight as checkpoints store it, [out, in], and its adapter.
 */
function emitLinear(
  g: GraphBuilder,
  inputs: BlockInputs,
  name: string,
  { x, addTo }: { readonly x: Value; readonly addTo?: Value },
): Value {
  const { weights, adapter } = inputs;
  return g.scope(name.split('.').at(-1)!, () => {
    const bias = weights.get(`${name}.bias`);
    const base = g.gemm(x, weight(weights, `${name}.weight`), { transB: true, c: bias ?? addTo });
    const product = emitAdapter(g, adapter, name, { x, product: base });
    return bias !== undefined && addTo !== undefined ? g.add(addTo, product) : product;
  });
}

/**
 * One pre-norm decoder layer: x + attention(norm(x)), then + SwiGLU(norm(·)). Grouped queries (Ainslie et al. 2023,
 * arXiv 2305.13245) need no copies of keys: the queries of a group stand below each other in one product.
 */
export function emitBlock(g: GraphBuilder, config: ModelConfig, inputs: BlockInputs): BlockOutputs {
  const { weights } = inputs;
  const attention = g.scope('self_attn', () => {
    const normed = g.scope('input_layernorm', () =>
      g.rmsNormalization(inputs.x, weight(weights, 'input_layernorm.weight'), config.rmsNormEpsilon),
    );
    return emitAttention(g, config, inputs, normed);
  });
  const x = g.scope('mlp', () => {
    const normed = g.scope('post_attention_layernorm', () =>
      g.rmsNormalization(attention.x, weight(weights, 'post_attention_layernorm.weight'), config.rmsNormEpsilon),
    );
    const gate = emitLinear(g, inputs, 'mlp.gate_proj', { x: normed });
    const up = emitLinear(g, inputs, 'mlp.up_proj', { x: normed });
    return emitLinear(g, inputs, 'mlp.down_proj', { x: emitSwiGlu(g, gate, up), addTo: attention.x });
  });
  return { ...attention, x };
}

/**
 * gate · σ(gate) · up (Shazeer 2020, arXiv 2002.05202, eq. 6). With σ and y = gate · σ · up there are few passes to its
 * gradient: dgate = dy · (y + σ · (up - y)) and dup = dy · gate · σ.
 */
export function emitSwiGlu(g: GraphBuilder, gate: Value, up: Value): Value {
  const [y] = g.withGradient([gate, up], () => {
    const sigmoid = g.sigmoid(gate);
    const swish = g.mul(gate, sigmoid);
    const y = g.mul(swish, up);
    return {
      outputs: [y],
      gradient: ([dy]) => [g.mul(dy!, g.add(y, g.mul(sigmoid, g.sub(up, y)))), g.mul(dy!, swish)],
    };
  });
  return y!;
}

function emitAttention(g: GraphBuilder, config: ModelConfig, inputs: BlockInputs, normed: Value): BlockOutputs {
  const { headCount, kvHeadCount, headDim } = config;
  const { rotary, cache } = inputs;
  const [batch, length] = rotary.cos.shape as [string, string];
  const project = (name: string, count: number) =>
    g.reshape(emitLinear(g, inputs, `self_attn.${name}`, { x: normed }), [batch, length, count * headDim]);
  const turn = (x: Value, count: number, scale = 1) =>
    g.rotaryEmbedding(x, g.scale(rotary.cos, scale), g.scale(rotary.sin, scale), count);
  const perHead = (x: Value) => g.reshape(x, [batch, length, kvHeadCount, headDim]);

  // Scaled tables instead of scaled scores: headDim numbers a column instead of T for each of its heads.
  const queries = g.scope('rotary_q', () => turn(project('q_proj', headCount), headCount, 1 / Math.sqrt(headDim)));
  const newKeys = perHead(g.scope('rotary_k', () => turn(project('k_proj', kvHeadCount), kvHeadCount)));
  const newValues = perHead(project('v_proj', kvHeadCount));
  const {
    mixed: joined,
    attention,
    written,
  } = 'blocks' in inputs.bias
    ? emitMixedByBlocks(g, config, [queries, newKeys, newValues], inputs.bias)
    : emitMixed(g, config, [queries, newKeys, newValues], { bias: inputs.bias, cache });
  const x = emitLinear(g, inputs, 'self_attn.o_proj', { x: joined, addTo: inputs.x });
  // The product once more: the residual stream stays what it is to the last bit whether the output is wanted or not.
  const attentionOutput = inputs.exposesAttention
    ? g.scope('output', () => emitLinear(g, inputs, 'self_attn.o_proj', { x: joined }))
    : undefined;
  return {
    x,
    ...(attention === undefined ? {} : { attention }),
    ...(attentionOutput === undefined ? {} : { attentionOutput }),
    ...(written === undefined ? {} : { cache: written }),
  };
}

/** Queries [B, T, heads·headDim], scaled, keys and values [B, T, kvHeads, headDim]. */
type QueriesKeysValues = readonly [queries: Value, keys: Value, values: Value];

interface Mixed {
  /** [B·T, heads·headDim]: the values as each head mixes them. */
  readonly mixed: Value;
  readonly attention?: Value;
  readonly written?: Keys['written'];
}

function emitMixed(
  g: GraphBuilder,
  { headCount, kvHeadCount, headDim }: ModelConfig,
  [rotated, newKeys, newValues]: QueriesKeysValues,
  { bias, cache }: { readonly bias: Value; readonly cache: KeyValueCache | undefined },
): Mixed {
  const [batch, length] = rotated.shape as [string, string];
  const group = headCount / kvHeadCount;
  const queries = g.reshape(
    g.transpose(g.reshape(rotated, [batch, length, kvHeadCount, group, headDim]), [0, 2, 3, 1, 4]),
    [batch, kvHeadCount, multiplyDims(group, length), headDim],
  );
  const { keysTransposed, values, written } =
    cache === undefined ? emitFreshKeys(g, newKeys, newValues) : emitCachedKeys(g, cache, newKeys, newValues);
  const { attention, mixed } = emitSoftmaxAttention(g, [queries, keysTransposed, values], { bias, group });
  const perHead = g.reshape(mixed, [batch, kvHeadCount, group, length, headDim]);
  return {
    mixed: g.reshape(g.transpose(perHead, [0, 3, 1, 2, 4]), [multiplyDims(batch, length), headCount * headDim]),
    attention,
    ...(written === undefined ? {} : { written }),
  };
}

function emitMixedByBlocks(
  g: GraphBuilder,
  { headCount, kvHeadCount, headDim }: ModelConfig,
  [queries, keys, values]: QueriesKeysValues,
  bias: BlockedBias,
): Mixed {
  const { blocks, blockLength } = bias;
  const [batch, length] = queries.shape as [string, string];
  const group = headCount / kvHeadCount;
  const perBlock = (x: Value) =>
    g.transpose(g.reshape(x, [batch, blocks, blockLength, kvHeadCount, headDim]), [0, 3, 1, 2, 4]);
  const perGroup = g.reshape(queries, [batch, blocks, blockLength, kvHeadCount, group, headDim]);
  const mixed = emitBlockedAttention(
    g,
    [g.transpose(perGroup, [0, 3, 1, 4, 2, 5]), perBlock(keys), perBlock(values)],
    bias,
  );
  return {
    mixed: g.reshape(g.transpose(mixed, [0, 2, 4, 1, 3, 5]), [multiplyDims(batch, length), headCount * headDim]),
  };
}

interface Keys {
  /** [B, kvHeads, headDim, keys] */
  readonly keysTransposed: Value;
  /** [B, kvHeads, keys, headDim] */
  readonly values: Value;
  readonly written?: { readonly keys: Value; readonly values: Value };
}

function emitFreshKeys(g: GraphBuilder, keys: Value, values: Value): Keys {
  return { keysTransposed: g.transpose(keys, [0, 2, 3, 1]), values: g.transpose(values, [0, 2, 1, 3]) };
}

function emitCachedKeys(g: GraphBuilder, cache: KeyValueCache, newKeys: Value, newValues: Value): Keys {
  const [batch, length, kvHeadCount, headDim] = newKeys.shape as [string, string, number, number];
  const rows = multiplyDims(batch, kvHeadCount, length);
  const write = (into: Value, fresh: Value) =>
    g.scatterRows(into, cache.slotRows, g.reshape(g.transpose(fresh, [0, 2, 1, 3]), [rows, headDim]));
  const keys = write(cache.keys, newKeys);
  const values = write(cache.values, newValues);
  const perHead = (x: Value) => g.reshape(x, [batch, kvHeadCount, cache.slots, headDim]);
  return {
    keysTransposed: g.transpose(perHead(keys), [0, 1, 3, 2]),
    values: perHead(values),
    written: { keys, values },
  };
}
