import assert from 'node:assert/strict';
import type { KdRecord } from '@stillhouse/evaluation';
import { test } from 'vitest';
import { chooseTemperature, type TemperatureChoice } from './choice.ts';
import { explainChoice, tabulateTemperatures } from './report.ts';

const record = (kl: number, targetTokens = 10): KdRecord => ({
  ...{ id: 'row', targetTokens, kl: { 1: kl }, ce: kl + 1, top1Agreement: 1 / (1 + kl) },
});
/** Rows that differ much from each other, and in the same way for all students. */
const hardness = [0.1, 0.5, 2, 0.3, 1, 4];
const student = (shift: number, jitter: readonly number[] = []) =>
  hardness.map((kl, row) => record(kl + shift + (jitter[row] ?? 0)));

test('differences row by row tell temperatures apart that the intervals of each alone would not', () => {
  const noise = [0.01, -0.01, 0.02, -0.02, 0.01, -0.01];
  const choice = chooseTemperature([
    { temperature: 1, students: [student(0.1, noise)] },
    { temperature: 2, students: [student(0)] },
    { temperature: 4, students: [student(0.001, noise)] },
  ]);
  assert.deepEqual([choice.recommended, choice.alike], [2, [4]]);
  const [one, two, four] = choice.temperatures as [
    TemperatureChoice['temperatures'][0],
    ...TemperatureChoice['temperatures'][0][],
  ];
  assert.deepEqual([one.verdict, two!.verdict, four!.verdict], ['worse', 'best', 'alike']);
  assert.ok(one.klAt1.interval!.low < two!.klAt1.mean, 'alone they overlap');
  assert.ok(Math.abs(one.difference!.mean - 0.1) < 1e-12 && two!.difference === null);
  assert.match(explainChoice(choice), /^T = 2 has the lowest held-out KL; T = 4 cannot be told from it.*One seed/);
  const table = tabulateTemperatures(choice);
  assert.deepEqual(
    table.map((row) => row.length),
    [8, 8, 8, 8],
  );
  assert.deepEqual(
    table.slice(1).map((row) => row[5]),
    ['worse', 'best', 'within the noise'],
  );
});

test('what seeds vary is part of the noise', () => {
  const sure = chooseTemperature([
    { temperature: 1, students: [student(0.1), student(0.1), student(0.1)] },
    { temperature: 2, students: [student(0), student(0), student(0)] },
  ]);
  assert.deepEqual(sure.alike, []);
  assert.match(explainChoice(sure), /every other temperature is worse by more than the noise\.$/);
  const unsure = chooseTemperature([
    { temperature: 1, students: [student(0.4), student(-0.3), student(0.2)] },
    { temperature: 2, students: [student(0), student(0), student(0)] },
  ]);
  assert.deepEqual([unsure.recommended, unsure.alike], [2, [1]]);
});
