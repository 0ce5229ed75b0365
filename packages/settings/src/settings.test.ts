import assert from 'node:assert/strict';
import { test } from 'vitest';
import { boolean, choice, flagOf, integer, list, number, parseFlagValue, resolveSettings, text } from './index.ts';

const table = {
  alpha: number('share of the soft loss', 0.7, { min: 0, max: 1 }),
  temperature: number('temperature', 2, { above: 0 }),
  steps: integer('steps', undefined, { min: 1 }),
  tail: choice('tail', ['tail', 'bucket'], 'tail'),
  student: text('folder', undefined),
  temperatures: list(
    'grid',
    (value): value is number => typeof value === 'number' && value > 0,
    'numbers above 0',
    [1, 2, 4],
  ),
  resume: boolean('go on'),
};

test('defaults fill what is not given', () => {
  const settings = resolveSettings(table, { alpha: 0, temperatures: [1] });
  assert.deepEqual(settings, {
    alpha: 0,
    temperature: 2,
    steps: undefined,
    tail: 'tail',
    student: undefined,
    temperatures: [1],
    resume: false,
  });
});

test('each bad value names its place, what is allowed and what was given', () => {
  const message = (given: Record<string, unknown>) => {
    try {
      resolveSettings(table, given);
    } catch (error) {
      return (error as Error).message;
    }
    return 'accepted';
  };
  assert.match(
    message({ alpha: 1.5 }),
    /^--alpha: the value is not allowed; expected at least 0 and at most 1, got 1\.5\./,
  );
  assert.match(message({ temperature: 0 }), /--temperature.*above 0, got 0/);
  assert.match(message({ steps: 1.5 }), /--steps.*a whole number, got 1\.5/);
  assert.match(message({ tail: 'x' }), /--tail.*one of tail, bucket, got "x"/);
  assert.match(message({ student: '' }), /--student.*text/);
  assert.match(message({ temperatures: [1, -2] }), /--temperatures.*numbers above 0/);
  assert.match(message({ resume: 'yes' }), /--resume.*true or false/);
  assert.match(message({ alhpa: 1 }), /--alhpa: there is no such setting; expected one of alpha, /);
});

test('flags and their values', () => {
  assert.equal(flagOf('hiddenWeight'), '--hidden-weight');
  assert.equal(parseFlagValue(table.alpha, '0.5', '--alpha'), 0.5);
  assert.deepEqual(parseFlagValue(table.temperatures, '1,2.5', '--temperatures'), [1, 2.5]);
  assert.throws(() => parseFlagValue(table.alpha, 'much', '--alpha'), /expected a number, got "much"/);
});
