import assert from 'node:assert/strict';
import { expectClose } from '@stillhouse/testing';
import { test } from 'vitest';
import { estimateRepeated, studentQuantile975 } from './repeated-estimate.ts';

test("quantiles of Student's distribution are those of the tables", () => {
  const table = { 1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 10: 2.2281, 30: 2.0423, 120: 1.9799 };
  for (const [degrees, expected] of Object.entries(table)) {
    expectClose([studentQuantile975(Number(degrees))], [expected], { relative: 0.008, where: `${degrees} degrees` });
  }
  assert.equal(studentQuantile975(4.9), studentQuantile975(4));
  expectClose([studentQuantile975(1e9)], [1.959963984540054], { relative: 1e-8, where: 'the normal limit' });
});

test('one run: the error of its rows; several: that of their mean and what the seeds vary', () => {
  // Rows of one token: the ratio is the plain mean, its error s/√R.
  const row = (sum: number) => ({ sum, tokens: 1 });
  const one = estimateRepeated([[row(1), row(2), row(3), row(6)]]);
  expectClose([one.mean, one.standardError!], [3, Math.sqrt(14 / 3 / 4)], { absolute: 1e-12, where: 'one run' });
  const half = studentQuantile975(3) * one.standardError!;
  expectClose([one.interval!.low, one.interval!.high], [3 - half, 3 + half], { absolute: 1e-12, where: 'interval' });
  // The runs' means are 2 and 4: variance 2, over two runs 1; rows of the mean are 2, 3, 4, 3.
  const two = estimateRepeated([
    [row(1), row(2), row(3), row(2)],
    [row(3), row(4), row(5), row(4)],
  ]);
  const ofRows = 2 / 3 / 4;
  expectClose([two.mean, two.standardError!], [3, Math.sqrt(ofRows + 1)], { absolute: 1e-12, where: 'two runs' });
  const degrees = (ofRows + 1) ** 2 / (ofRows ** 2 / 3 + 1);
  assert.equal(Math.floor(degrees), 1);
  expectClose([two.interval!.high - 3], [12.7062 * two.standardError!], {
    relative: 1e-4,
    where: 'two runs, interval',
  });
});

test('too little to tell gives no interval, no spread a point, and other rows are refused', () => {
  assert.deepEqual(estimateRepeated([[{ sum: 3, tokens: 2 }]]), { mean: 1.5, standardError: null, interval: null });
  const same = [
    { sum: 2, tokens: 2 },
    { sum: 3, tokens: 3 },
  ];
  assert.deepEqual(estimateRepeated([same, same]), { mean: 1, standardError: 0, interval: { low: 1, high: 1 } });
  const refused = { code: 'ROWS_DIFFER' };
  assert.throws(() => estimateRepeated([same, same.slice(1)]), refused);
  assert.throws(() => estimateRepeated([same, [...same].reverse()]), refused);
});
