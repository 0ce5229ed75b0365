import assert from 'node:assert/strict';
import { StillhouseError } from '@stillhouse/errors';
import { test } from 'vitest';
import { describeFailure } from './failure.ts';

test('what nobody foresaw is called a defect, with its stack and the causes', () => {
  const cause = new RangeError('inner');
  const { exitCode, message, document } = describeFailure(new TypeError('outer', { cause }), false);
  assert.equal(exitCode, 1);
  assert.match(
    message,
    /^stillhouse: this is a defect.*\[DEFECT\]\nTypeError: outer\n +at .*caused by RangeError: inner\n +at /s,
  );
  assert.equal(document.error.code, 'DEFECT');
});

test('a value thrown that is no error', () => {
  assert.match(describeFailure('odd', false).message, /\[DEFECT\]\nodd$/);
});

test('a foreseen failure is told without its cause', () => {
  const report = { code: 'X', where: 'a file', problem: 'it is bad', cause: new Error('inner') };
  const { exitCode, message, document } = describeFailure(new StillhouseError(report), false);
  assert.equal(exitCode, 1);
  assert.equal(message, 'stillhouse: a file: it is bad. [X]');
  assert.deepEqual(document, {
    error: { code: 'X', message: 'a file: it is bad.', where: 'a file', problem: 'it is bad' },
  });
});
