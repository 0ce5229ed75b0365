import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isStillhouseError } from '@stillhouse/errors';
import type { HiddenLayer } from '@stillhouse/teacher-cache';
import { isLayerPair, resolveLayerPairs } from './layer-pairs.ts';

const resolve = (entries: readonly string[], stored: readonly HiddenLayer[], teacherLayers = 28, studentLayers = 24) =>
  resolveLayerPairs(entries, '--hidden-layers', { stored, teacherLayers, studentLayers, where: 'CACHE' }).map(
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
    ['HIDDEN_NOT_IN_CACHE', /The teacher has layers 0 to 28/, ['6:29'], [7]],
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
