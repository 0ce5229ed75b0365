import assert from 'node:assert/strict';
import { isStillhouseError } from '@stillhouse/errors';
import type { HiddenLayer } from '@stillhouse/teacher-cache';
import { test } from 'vitest';
import { isAttentionPair, isLayerPair, resolveLayerPairs } from './layer-pairs.ts';

const resolve = (
  entries: readonly string[],
  stored: readonly HiddenLayer[],
  teacherLayers = 28,
  studentLayers = 24,
  states: 'hidden' | 'attention' = 'hidden',
) =>
  resolveLayerPairs(states, entries, { stored, teacherLayers, studentLayers, where: 'CACHE' }).map(
    ({ student, teacher }) => `${student}:${teacher}`,
  );

test('maps by name and explicit pairs', () => {
  assert.deepEqual(resolve(['last'], ['final', 7]), ['final:final']);
  assert.deepEqual(resolve(['6:7', 'final:7', '0:0'], [0, 7]), ['6:7', 'final:7', '0:0']);
  // 7 · 24/28 = 6, 14 → 12, 28 → 24.
  assert.deepEqual(resolve(['uniform'], ['final', 28, 7, 14]), ['6:7', '12:14', '24:28', 'final:final']);
  assert.deepEqual(resolve(['uniform'], [0, 1, 2, 3, 4], 4, 2), ['0:0', '1:2', '2:4'], 'the one that belongs nearest');
  assert.deepEqual(resolve(['uniform'], [1, 3], 4, 1), ['0:1', '1:3']);
  assert.deepEqual(resolve(['uniform'], [1, 3], 4, 8), ['2:1', '6:3']);
});

test('attention outputs are paired by layers counted from 1, apart from other states', () => {
  const stored = ['final', 7, 'attention.1', 'attention.14', 'attention.28'] as const;
  const attention = (entries: readonly string[], layers = 24) => resolve(entries, stored, 28, layers, 'attention');
  assert.deepEqual(attention(['last']), ['attention.24:attention.28']);
  assert.deepEqual(attention(['3:14']), ['attention.3:attention.14']);
  assert.deepEqual(attention(['uniform']), [
    'attention.1:attention.1',
    'attention.12:attention.14',
    'attention.24:attention.28',
  ]);
  assert.deepEqual(attention(['uniform'], 2), ['attention.1:attention.14', 'attention.2:attention.28']);
  assert.deepEqual(resolve(['uniform'], stored), ['6:7', 'final:final']);
  for (const entry of ['0:1', '1:0', 'final:final', '1']) assert.ok(!isAttentionPair(entry));
  assert.throws(
    () => attention(['3:7']),
    /--attention-layers 3:7: .*no attention outputs of layer 7; expected a layer of 1, 14, 28, got 7\. .*--hidden-layers attention\.1,attention\.14,attention\.28,attention\.7/,
  );
  assert.throws(() => attention(['25:14']), /expected 1 to 24, got 25/);
  assert.throws(
    () => resolve(['last'], ['final'], 28, 24, 'attention'),
    /no pairs: the cache holds no attention outputs/,
  );
  assert.throws(() => resolve(['uniform'], ['final'], 28, 24, 'attention'), /holds no attention outputs/);
});

test('what is no map and no pair is no setting', () => {
  for (const entry of ['6', '6:', ':7', 'last:last', '6:7:8', '-1:2', 'first', '6:x', 6])
    assert.ok(!isLayerPair(entry));
  for (const entry of ['last', 'uniform', '6:7', 'final:12', '0:final']) assert.ok(isLayerPair(entry));
});

test('pairs that cannot be are refused, and say what there is', () => {
  const cases: readonly [string, RegExp, readonly string[], readonly HiddenLayer[]][] = [
    [
      'HIDDEN_NOT_IN_CACHE',
      /--hidden-layers 6:8: .* no hidden states of layer 8; expected a layer of final, 7, got 8\. .*--hidden-layers final,7,8/,
      ['6:8'],
      ['final', 7],
    ],
    ['HIDDEN_NOT_IN_CACHE', /The teacher has 28 layers/, ['6:29'], [7]],
    ['HIDDEN_NOT_IN_CACHE', /holds no final hidden states.*holds no hidden states/, ['last'], []],
    ['HIDDEN_NOT_IN_CACHE', /uniform.*no hidden states/, ['uniform'], []],
    ['LAYER_OUT_OF_RANGE', /25:7: the student has no such layer; expected final or 0 to 24, got 25/, ['25:7'], [7]],
    ['SETTING_INVALID', /a pair is named twice; got 6:7/, ['6:7', '6:7'], [7]],
    ['SETTING_INVALID', /stands alone.*got uniform,6:7/, ['uniform', '6:7'], [7]],
  ];
  for (const [code, message, entries, stored] of cases) {
    assert.throws(
      () => resolve(entries, stored),
      (error) => {
        assert.ok(isStillhouseError(error, code), String(error));
        assert.match(error.message, message);
        return true;
      },
    );
  }
});
