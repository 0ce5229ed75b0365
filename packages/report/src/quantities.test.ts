import assert from 'node:assert/strict';
import { test } from 'vitest';
import { printBytes, printCount, printDuration, printShare, printSignificant } from './quantities.ts';

test('counts, sizes and times as people write them', () => {
  assert.equal(printCount(1234567.8), '1,234,568');
  assert.equal(printBytes(0), '0 B');
  assert.equal(printBytes(1023), '1,023 B');
  assert.equal(printBytes(1540), '1.50 KiB');
  assert.equal(printBytes(467 * 2 ** 20), '467 MiB');
  assert.equal(printShare(0.31449), '31.4 %');
  assert.equal(printDuration(42_400), '42 s');
  assert.equal(printDuration(185_000), '3 min 05 s');
  assert.equal(printDuration(59_600), '1 min 00 s');
  assert.equal(printDuration(7_620_000), '2 h 07 min');
});

test('significant digits', () => {
  assert.equal(printSignificant(0), '0.000');
  assert.equal(printSignificant(2.34567), '2.346');
  assert.equal(printSignificant(0.0123456), '0.01235');
  assert.equal(printSignificant(1540.4), '1540');
  assert.equal(printSignificant(-2.71949), '-2.719');
  assert.equal(printSignificant(123456.7), '123457');
  assert.equal(printSignificant(3.2e-7), '3.200e-7');
  assert.equal(printSignificant(Number.NaN), 'NaN');
});
