import assert from 'node:assert/strict';
import { readModelConfig } from '@stillhouse/checkpoint';
import { isStillhouseError } from '@stillhouse/errors';
import { resolveSettings } from '@stillhouse/settings';
import { test } from 'vitest';
import { planBackward } from '../plan/backward-plan.ts';
import { resolveTrainLayers, trainedNames } from './train-layers.ts';
import { TRAINING_SETTINGS } from './training-settings.ts';

const untied = {
  ...(await readModelConfig(new URL('../../../../test/golden/qwen2-tiny', import.meta.url).pathname)),
  layerCount: 24,
  tieWordEmbeddings: false,
};
const tied = { ...untied, tieWordEmbeddings: true };

const layersOf = (...entries: (string | number)[]) => [...resolveTrainLayers(entries, untied).layers];
const partsOf = (config: typeof tied, ...entries: string[]) => [...resolveTrainLayers(entries, config).parts].sort();

test('layers by number, range and end, and the parts around them', () => {
  assert.deepEqual(layersOf('0-3', 20, '20-21'), [0, 1, 2, 3, 20, 21]);
  assert.deepEqual(layersOf('first-2', 'last-3'), [0, 1, 21, 22, 23]);
  assert.equal(layersOf('all').length, 24);
  assert.deepEqual(layersOf('norm', 'head'), []);
  assert.deepEqual(partsOf(untied, 'norm', 'last-1'), ['norm']);
  assert.deepEqual(partsOf(untied, 'head'), ['head']);
  assert.deepEqual(partsOf(untied, 'all'), ['embedding', 'head', 'norm']);
});

test('where embedding and output matrix are one tensor, either name means both its uses', () => {
  assert.deepEqual(partsOf(tied, 'head'), ['embedding', 'head']);
  assert.deepEqual(partsOf(tied, 'embedding'), ['embedding', 'head']);
  assert.deepEqual(partsOf(tied, 'last-1'), []);
});

test('what names nothing is refused, each with its reason', () => {
  const cases: readonly [entries: (string | number)[], message: RegExp][] = [
    [['24'], /the student has 24 layers; expected layers from 0 to 23, got 24/],
    [['20-24'], /layers from 0 to 23, got 20-24/],
    [['5-2'], /the range ends before it begins; expected 2-5, got 5-2/],
    [['last-0'], /a number of layers from 1 to 24, got last-0/],
    [['first-25'], /a number of layers from 1 to 24, got first-25/],
    [['all', 'norm'], /expected all alone, got all,norm/],
    [['layers'], /names no part of a student; expected all, or any of: N, N-M/],
  ];
  for (const [entries, message] of cases) {
    assert.throws(
      () => resolveTrainLayers(entries, untied),
      (error) => {
        assert.ok(isStillhouseError(error, 'TRAIN_LAYERS_INVALID'), String(error));
        assert.match(error.message, /^--train-layers/);
        assert.match(error.message, message);
        return true;
      },
    );
  }
  for (const trainLayers of [[], ['layers'], ['-1'], [1.5], ['last-'], 'all']) {
    assert.throws(() => resolveSettings(TRAINING_SETTINGS, { trainLayers }), /--train-layers.*first-N, last-N/);
  }
});

test('the backward pass goes no further down than the lowest layer that learns', () => {
  const plan = (...entries: string[]) =>
    planBackward(untied, trainedNames(resolveTrainLayers(entries, { ...untied, layerCount: 4 })));
  const shape = ({ layers }: ReturnType<typeof plan>) =>
    layers.slice(0, 4).map((layer) => layer && [layer.trained.size > 0, layer.hasInputGradient]);
  assert.deepEqual(shape(plan('1', '3')), [undefined, [true, false], [false, true], [true, true]]);
  assert.deepEqual(shape(plan('embedding')), Array(4).fill([false, true]));
  assert.deepEqual([plan('embedding').lowestLayer, plan('embedding').hasEmbeddingGradient], [0, true]);
  assert.deepEqual([plan('2').lowestLayer, plan('2').hasEmbeddingGradient], [2, false]);
  assert.equal(plan('norm', 'head').lowestLayer, 24);
});
