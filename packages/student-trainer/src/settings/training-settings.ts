import { isLinearName, LINEAR_NAMES } from '@stillhouse/decoder';
import { boolean, choice, integer, list, number, type SettingsOf, text } from '@stillhouse/settings';
import { OPTIMISER_STATE_FORMATS } from '../optimiser/optimiser-state.ts';
import { isAttentionPair, isLayerPair } from './layer-pairs.ts';
import { isTaskWeight } from './task-weights.ts';
import { isTrainLayersEntry, TRAIN_LAYERS_SYNTAX } from './train-layers.ts';

const isName = (value: unknown): value is string => typeof value === 'string' && value !== '';

/** Every setting of a training run: recipe keys and, in kebab case, flags of `stillhouse train`. */
export const TRAINING_SETTINGS = {
  cache: text('the teacher cache to learn from; several, as A,B, are mixed', undefined, { joins: ',' }),
  cacheWeights: list(
    'shares in tokens of several caches, as 2,1; left out: as many as each has, so that every row comes once an epoch',
    (value): value is number => typeof value === 'number' && value > 0 && Number.isFinite(value),
    'numbers above 0',
    undefined,
  ),
  student: text('model folder to start from', undefined),
  out: text('folder for the trained student, metrics and checkpoints', undefined),
  labels: choice(
    'teacher labels of the KL term; left out: full where the cache can, else topk, else sampled',
    ['full', 'topk', 'sampled', 'none'],
    undefined,
  ),
  refine: choice(
    'full labels with the head from exact top-k: auto does so where hidden states are stored in a lossy dtype',
    ['auto', 'always', 'never'],
    'auto',
  ),
  tail: choice('what topk labels do with the mass outside the top k', ['tail', 'bucket', 'renormalise'], 'tail'),
  temperature: number('softmax temperature T of the KL term', 2, { above: 0 }),
  alpha: number('share of T² KL; 1 - alpha is the share of cross-entropy', 0.7, { min: 0, max: 1 }),
  divergence: choice(
    'how far the student is from the teacher; sampled and renormalised labels take forward-kl only',
    ['forward-kl', 'reverse-kl', 'js', 'skew-kl', 'tv'],
    'forward-kl',
  ),
  jsBeta: number("the teacher's share in the mixture of js; left out: 0.5", undefined, { above: 0, max: 0.9999999 }),
  skew: number("the teacher's share in the mixture of skew-kl; left out: 0.1", undefined, { min: 0, max: 0.9999999 }),
  schedule: choice('how T and alpha go to their ends over the run', ['constant', 'linear', 'cosine'], 'constant'),
  temperatureEnd: number('T at the last step; left out: temperature throughout', undefined, { above: 0 }),
  alphaEnd: number('alpha at the last step; left out: alpha throughout', undefined, { min: 0, max: 1 }),
  taskWeights: list(
    'weights in the loss by the task of a row, as math=2,code=1; rows of other tasks weigh 1',
    isTaskWeight,
    'task=weight, each weight a number above 0',
    undefined,
  ),
  selectTokens: number(
    "share of each row's target positions that count: those of the student's highest entropy; 1 is all",
    1,
    { above: 0, max: 1 },
  ),
  hiddenWeight: number('weight of the hidden-state term, the mean over its layers; 0 leaves it out', 0, { min: 0 }),
  hiddenLayers: list(
    'states that are matched, student:teacher, as 6:7,final:final: n after n layers, 0 the embeddings; ' +
      'uniform: those of the cache spread over the student; left out: last, the final states',
    isLayerPair,
    'last, uniform, or pairs student:teacher of layer numbers and final',
    undefined,
  ),
  attentionWeight: number('weight of the attention term, the mean over its layers; 0 leaves it out', 0, { min: 0 }),
  attentionLayers: list(
    'attention outputs that are matched, student:teacher, as 3:5, layers from 1; uniform: those of the cache ' +
      'spread over the student; left out: last, those of the last layers',
    isAttentionPair,
    'last, uniform, or pairs student:teacher of layers from 1',
    undefined,
  ),
  featuresOnly: boolean(
    'train on these states alone: no KL, no cross-entropy, nothing above the highest layer that is matched',
  ),
  hiddenLoss: choice('distance of hidden states and of attention outputs', ['mse', 'cosine'], 'mse'),
  hiddenNormalise: choice(
    'both sides before they are compared: over their root mean square, or as layer norm does',
    ['none', 'rms', 'layer'],
    'none',
  ),
  projection: choice(
    'learned layer between the widths, one a pair: auto uses them where the widths differ',
    ['auto', 'linear', 'none'],
    'auto',
  ),
  lr: number('peak learning rate', 5e-5, { above: 0 }),
  warmupSteps: integer('steps of linear warm-up', 0, { min: 0 }),
  finalLrRatio: number('learning rate at the last step as a share of the peak (cosine)', 0.1, { min: 0, max: 1 }),
  weightDecay: number('decoupled weight decay, on matrices only', 0.1, { min: 0 }),
  beta1: number('decay of the mean gradient', 0.9, { min: 0, max: 0.9999999 }),
  beta2: number('decay of the mean squared gradient', 0.95, { min: 0, max: 0.9999999 }),
  epsilon: number('added to the root of the mean square', 1e-8, { above: 0 }),
  clip: number('largest global gradient norm', 1, { above: 0 }),
  optimiserState: choice(
    "how AdamW's moments are held: 8, 4 or 2 bytes for both; bfloat16 and int8 change a step by about 0.2 and 1.4 %",
    OPTIMISER_STATE_FORMATS,
    'float32',
  ),
  steps: integer('optimiser steps; left out: by epochs', undefined, { min: 1 }),
  epochs: number('instead of steps: how often the tokens of all rows are seen; left out: once', undefined, {
    above: 0,
  }),
  batchTokens: integer('tokens of a step: rows are taken until they hold so many', 4096, { min: 1 }),
  accumulate: integer(
    'micro-batches that a step is split into, each of rows of like length; saves memory, changes nothing else',
    1,
    { min: 1 },
  ),
  batching: choice(
    'rows in a micro-batch: packed, several side by side where they fit, or bucketed, one a row and padded',
    ['packed', 'bucketed'],
    'packed',
  ),
  prefetchSteps: integer('steps whose labels are read ahead, in memory all of them; changes no number', 2, { min: 1 }),
  chunkPositions: integer('label positions whose logits are in memory at a time', 128, { min: 1 }),
  recompute: choice(
    'compute activations again for gradients instead of keeping them: auto does so where they would take a ' +
      'quarter of memory',
    ['auto', 'always', 'never'],
    'auto',
  ),
  trainLayers: list(
    'what learns; the rest is frozen. Layers count from 0: 0-3,20, first-N, last-N; embedding, norm, head; all',
    isTrainLayersEntry,
    TRAIN_LAYERS_SYNTAX,
    ['all'] as readonly (string | number)[],
  ),
  loraRank: integer('train low-rank adapters of this rank and nothing else; left out: none', undefined, { min: 1 }),
  loraAlpha: number('adapters count alpha / rank; left out: the rank', undefined, { above: 0 }),
  loraTargets: list(
    `linear layers that have adapters; left out: all of ${LINEAR_NAMES.join(', ')}`,
    isLinearName,
    LINEAR_NAMES.join(', '),
    undefined,
  ),
  seed: integer('seed of the data order, of new projections and of new adapters', 0, { min: 0, max: 0xffffffff }),
  split: text('train only on rows of this split; left out: all rows', undefined),
  tasks: list('train only on rows of these tasks; left out: all', isName, 'names of tasks', undefined),
  sources: list('train only on rows from these sources; left out: all', isName, 'names of sources', undefined),
  verifiedOnly: boolean('train only on rows that have a verified answer'),
  checkpointEvery: integer('steps between checkpoints', 200, { min: 1 }),
  keepCheckpoints: integer('newest checkpoints kept', 2, { min: 1 }),
  saveDtype: choice('dtype of the final weights', ['float32', 'bfloat16', 'float16'], 'float32'),
  device: choice('where to compute', ['auto', 'cpu', 'cuda', 'webgpu'], 'auto'),
  precision: choice(
    'what matrix products round their operands to; other than float32 on cuda only',
    ['float32', 'tf32', 'bfloat16'],
    'float32',
  ),
  threads: integer('CPU threads; left out: all', undefined, { min: 1 }),
  resume: boolean('go on from the newest checkpoint in --out'),
  resumeStep: integer('with --resume: go on from the checkpoint of this step rather than from the newest', undefined, {
    min: 1,
  }),
  evalEvery: integer('steps between evaluations on held-out rows; left out: none', undefined, { min: 1 }),
  evalCache: text('cache to evaluate on; left out: the one that is trained on', undefined),
  evalSplit: text('evaluate on rows of this split', undefined),
  evalLimit: integer('evaluate on only the first so many rows', undefined, { min: 1 }),
  tensorboard: boolean('write event files for TensorBoard too, into tensorboard/ in --out'),
} as const;

export type TrainingSettings = SettingsOf<typeof TRAINING_SETTINGS>;

/**
 * Settings that may differ between a run and its continuation: most change no number, and how a step is split and where
 * it is computed change sums by rounding only. Cache and student may lie elsewhere; a checkpoint knows their digests.
 */
export const SETTINGS_FREE_ON_RESUME: readonly (keyof TrainingSettings)[] = [
  'resume',
  'resumeStep',
  'out',
  'checkpointEvery',
  'keepCheckpoints',
  'threads',
  'saveDtype',
  'cache',
  'student',
  'accumulate',
  'batching',
  'prefetchSteps',
  'chunkPositions',
  'recompute',
  'device',
  'evalEvery',
  'evalCache',
  'evalSplit',
  'evalLimit',
  'tensorboard',
];
