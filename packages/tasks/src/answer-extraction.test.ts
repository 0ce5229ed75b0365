import assert from 'node:assert/strict';
import fc from 'fast-check';
import { test } from 'vitest';
import { answersMatch, extractFinalAnswer, normaliseAnswer } from './answer-extraction.ts';

test('the final answer is what follows the last ####', () => {
  const cases: readonly (readonly [string, string])[] = [
    ['3*6=18. 14+18=32. #### 32', '32'],
    ['She sold 48/2 = <<48/2=24>>24 clips.\n#### 72', '72'],
    ['#### 5\nno, wait\n#### 6', '6'],
    ['#### 1,234', '1234'],
    ['#### $18.00', '18'],
    ['#### -7 degrees', '-7'],
    ['#### \u22127', '-7'],
    ['####27', '27'],
    ['####\n27\n28', '27'],
    ['#### 27.', '27'],
    ['#### (B)', 'b'],
    ['#### 3/4 cup', '3/4'],
  ];
  for (const [text, answer] of cases) assert.deepEqual(extractFinalAnswer(text), { answer, source: 'marker' }, text);
});

test('without a marker the last number counts', () => {
  const cases: readonly (readonly [string, string])[] = [
    ['So there are 3 boxes and 27 apples.', '27'],
    ['The total is $1,250.50 in all', '1250.5'],
    ['the result of 32-5', '5'],
    ['she is at -5', '-5'],
    ['x = (3)-4', '4'],
    ['it costs .50', '0.5'],
    ['50% off', '50'],
    ['1, 2, 3', '3'],
    ['in 2024,7', '7'],
    ['the answer is 12. #### ', '12'],
  ];
  for (const [text, answer] of cases) {
    assert.deepEqual(extractFinalAnswer(text), { answer, source: 'last-number' }, text);
  }
});

test('a text without number or marker has no answer', () => {
  assert.equal(extractFinalAnswer('I do not know.'), undefined);
  assert.equal(extractFinalAnswer(''), undefined);
  assert.equal(extractFinalAnswer('#### '), undefined);
});

test('answers match by value, units and spelling aside', () => {
  const same: readonly (readonly [string, string])[] = [
    ['27', '27.0'],
    ['27', '$27 dollars'],
    ['1,234,567', '1234567'],
    ['0.75', '3/4'],
    ['-0', '0'],
    ['007', '7'],
    ['36/4', '9'],
    ['(A)', 'a.'],
    ['yes', ' Yes '],
  ];
  const different: readonly (readonly [string, string])[] = [
    ['27', '-27'],
    ['27', '2.7'],
    ['9007199254740993', '9007199254740992'],
    ['', ''],
    ['1/0', '1'],
    ['a', 'b'],
    ['3', 'three'],
  ];
  for (const [a, b] of same) assert.ok(answersMatch(a, b) && answersMatch(b, a), `${a} | ${b}`);
  for (const [a, b] of different) assert.ok(!answersMatch(a, b) && !answersMatch(b, a), `${a} | ${b}`);
});

test('normalising is idempotent and keeps the value of any written number', () => {
  fc.assert(
    fc.property(fc.integer({ min: -1e9, max: 1e9 }), fc.nat(999), (whole, thousandths) => {
      const text = `${whole.toLocaleString('en-US')}.${String(thousandths).padStart(3, '0')}`;
      const normalised = normaliseAnswer(text);
      assert.equal(Number(normalised), Number(text.replaceAll(',', '')) + 0);
      assert.equal(normaliseAnswer(normalised), normalised);
    }),
  );
});
