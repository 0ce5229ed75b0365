import assert from 'node:assert/strict';
import { isStillhouseError } from '@stillhouse/errors';
import type { Question } from '@stillhouse/rows';
import { test } from 'vitest';
import { exactMatch } from './exact-match.ts';

const question = (said: Pick<Question, 'answer' | 'worked'>): Question => ({
  id: 'a',
  where: 'FILE, line 3',
  prompt: { kind: 'text', text: 'How many?' },
  ...said,
});

test('the expected answer is what the line names, or the end of its worked answer', () => {
  const cases: readonly (readonly [Pick<Question, 'answer' | 'worked'>, string])[] = [
    [{ answer: 'She has 3*4=<<3*4=12>>12.\n#### 1,012' }, '1012'],
    [{ answer: '12', worked: '#### 13' }, '12'],
    [{ worked: '3*4=12. #### 12' }, '12'],
    [{ answer: '(C)' }, 'c'],
  ];
  for (const [said, answer] of cases) assert.equal(exactMatch.readItem(question(said)).answer, answer);
});

test('a question without an expected answer is refused with its line', () => {
  for (const said of [{}, { answer: ' ' }, { worked: 'there are 12' }, { answer: '', worked: '#### 12' }]) {
    assert.throws(
      () => exactMatch.readItem(question(said)),
      (error) => isStillhouseError(error, 'QUESTION_ANSWER') && error.report.where === 'FILE, line 3',
    );
  }
});

test('an answer cut off counts only by its marker', () => {
  const item = exactMatch.readItem(question({ answer: '12' }));
  const judge = (text: string, finishedBy: 'stop' | 'length') => exactMatch.judge(item, { text, finishedBy });
  assert.deepEqual(judge('so 12', 'stop'), { prediction: '12', correct: true });
  assert.deepEqual(judge('so 12', 'length'), { prediction: null, correct: false });
  assert.deepEqual(judge('#### 12 and', 'length'), { prediction: '12', correct: true });
  assert.deepEqual(judge('so 13', 'stop'), { prediction: '13', correct: false });
  assert.deepEqual(judge('no idea', 'stop'), { prediction: null, correct: false });
});
