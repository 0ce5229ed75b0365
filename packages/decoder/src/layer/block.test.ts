import assert from 'node:assert/strict';
import { type GradientCase, gradientError } from '@stillhouse/gradient-check';
import type { GraphBuilder, Value } from '@stillhouse/onnx-graph';
import { openEngine } from '@stillhouse/runtime';
import { afterAll, test } from 'vitest';
import { emitSoftmaxAttention } from '../attention/softmax-attention.ts';
import { emitSwiGlu } from './block.ts';

const engine = await openEngine({ threads: 1 });
afterAll(() => engine.close());

const [B, KV, GROUP, T, KEYS, DIM] = [2, 2, 2, 3, 3, 4] as const;
const causal = (g: GraphBuilder) =>
  g.constant(
    Float64Array.from({ length: B * T * KEYS }, (_, i) => (i % KEYS <= Math.floor(i / KEYS) % T ? 0 : -1e30)),
    'float64',
    [B, 1, 1, T, KEYS],
  );
const ATTENTION_INPUTS = [
  { shape: [B, KV, GROUP * T, DIM] },
  { shape: [B, KV, DIM, KEYS] },
  { shape: [B, KV, KEYS, DIM] },
];
const emit = (g: GraphBuilder, [q, k, v]: readonly Value[]) =>
  emitSoftmaxAttention(g, [q!, k!, v!], { bias: causal(g), group: GROUP });

const CASES: Readonly<Record<string, GradientCase>> = {
  SwiGLU: { inputs: [{ shape: [2, 5] }, { shape: [2, 5] }], build: (g, [gate, up]) => [emitSwiGlu(g, gate!, up!)] },
  'what attention mixes': { inputs: ATTENTION_INPUTS, build: (g, qkv) => [emit(g, qkv).mixed] },
  'attention itself': {
    inputs: ATTENTION_INPUTS.slice(0, 2),
    build: (g, qk) => [emit(g, [...qk, g.zeros([B, KV, KEYS, DIM])]).attention],
  },
  'both of attention': {
    inputs: ATTENTION_INPUTS,
    build: (g, qkv) => Object.values(emit(g, qkv)),
  },
};

for (const [name, one] of Object.entries(CASES)) {
  test(`${name}: the closed gradient agrees with central differences in float64`, async () => {
    const error = await gradientError(engine, one);
    assert.ok(error < 1e-7, `relative error ${error}`);
  });
}
