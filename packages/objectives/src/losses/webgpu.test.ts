import assert from 'node:assert/strict';
import { encodeModel } from '@stillhouse/onnx-graph';
import { test } from 'vitest';
import { type Divergence, entropyGraph, lossGraph, type SoftLabels, selectionGraph } from '../index.ts';
import { type FeatureMatch, featureLossGraph } from './feature-match.ts';

const readout = { hiddenSize: 8, vocabSize: 2000, rmsNormEpsilon: 1e-6 };

const LABELS: readonly SoftLabels[] = [
  { kind: 'none' },
  { kind: 'full', teacherHidden: 12 },
  { kind: 'full', teacherHidden: 12, isCoded: true },
  { kind: 'full', teacherHidden: 12, refinement: { k: 4, normaliser: 'stored' } },
  { kind: 'full', teacherHidden: 12, refinement: { k: 4, normaliser: 'computed' } },
  { kind: 'topk', k: 4, tail: 'tail', isWhole: false },
  { kind: 'topk', k: 4, tail: 'bucket', isWhole: false },
  { kind: 'topk', k: 4, tail: 'renormalise', isWhole: false },
  { kind: 'topk', k: 4, tail: 'renormalise-both', isWhole: false },
  { kind: 'topk', k: 4, tail: 'tail', isWhole: true },
  { kind: 'sampled' },
];
const DIVERGENCES: readonly Divergence[] = [
  { kind: 'forward-kl' },
  { kind: 'reverse-kl' },
  { kind: 'jensen-shannon', beta: 0.3 },
  { kind: 'skew-kl', skew: 0.1 },
  { kind: 'total-variation' },
];

test('WebGPU has kernels for every loss', () => {
  for (const labels of LABELS) {
    for (const divergence of DIVERGENCES)
      assert.ok(encodeModel(lossGraph({ labels, divergence }, readout, 'float32'), 'webgpu').length > 0);
  }
});

test('WebGPU has kernels for every match of states, and for the selection of tokens', () => {
  for (const loss of ['mse', 'cosine'] as const) {
    for (const normalisation of ['none', 'rms', 'layer'] as const) {
      const matches: readonly FeatureMatch[] = [
        { student: 'final', teacher: 'final', loss, normalisation, teacherHidden: 12, hasProjection: true },
        { student: 1, teacher: 2, loss, normalisation, teacherHidden: 8, hasProjection: false },
      ];
      for (const match of matches)
        assert.ok(encodeModel(featureLossGraph(match, readout, 'float32'), 'webgpu').length > 0);
    }
  }
  for (const graph of [entropyGraph(readout, 'float32'), selectionGraph('float32')])
    assert.ok(encodeModel(graph, 'webgpu').length > 0);
});
