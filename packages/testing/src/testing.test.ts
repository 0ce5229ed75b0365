import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import * as fc from 'fast-check';
import { describe, test } from 'vitest';
import { expectClose, expectSmallDifference, makeTemporaryFolder, quantile, runNode, startNode } from './index.ts';

const where = 'x';

test('expectClose names the worst element and both values', () => {
  assert.throws(
    () => expectClose(Float32Array.of(1, 2.5, 4), Float32Array.of(1, 2, 3), { absolute: 0.25, where: 'logits' }),
    /^AssertionError.*: logits: 2 of 3 values are not close; worst at index 2: actual 4, expected 3, difference 1, allowed 0.25$/,
  );
  expectClose([1, 2.5], [1, 2], { absolute: 0.5, where });
  expectClose([110], [100], { relative: 0.1, where });
  assert.throws(() => expectClose([111], [100], { relative: 0.1, where }));
});

test('expectClose without a bound means equal; lengths count', () => {
  expectClose([0.1, Number.POSITIVE_INFINITY], [0.1, Number.POSITIVE_INFINITY], { where });
  assert.throws(() => expectClose([0.1 + 0.2], [0.3], { where }));
  assert.throws(() => expectClose([1], [1, 2], { absolute: 9, where }), /x: 1 values, expected 2/);
});

test('NaN and infinities are never close, whatever is allowed', () => {
  for (const [a, b] of [
    [Number.NaN, 1],
    [1, Number.NaN],
    [Number.NaN, Number.NaN],
    [Number.POSITIVE_INFINITY, 1],
    [1, Number.POSITIVE_INFINITY],
    [Number.NEGATIVE_INFINITY, Number.POSITIVE_INFINITY],
  ] as const) {
    assert.throws(() => expectClose([0, a], [0, b], { absolute: 1e9, relative: 1, where }), /worst at index 1/);
    assert.throws(() => expectSmallDifference([a], [b], { mean: 1e9, where }));
  }
});

test('a quantile is the smallest value that the given share does not exceed', () => {
  fc.assert(
    fc.property(
      fc.array(fc.double({ noNaN: true }), { minLength: 1 }),
      fc.double({ min: 0.01, max: 1, noNaN: true }),
      (values, share) => {
        const at = quantile(values, share);
        const within = (bound: number) => values.filter((value) => value <= bound).length;
        assert.ok(values.includes(at) && within(at) >= Math.ceil(share * values.length));
        const below = values.filter((value) => value < at);
        if (below.length > 0) assert.ok(within(Math.max(...below)) < Math.ceil(share * values.length));
      },
    ),
  );
});

test('mean, 99.9 % and worst are bounded one by one', () => {
  const expected = new Float64Array(10_000);
  const actual = Float64Array.from(expected, (_, index) => (index === 7 ? 1 : 1e-6));
  const summary = expectSmallDifference(actual, expected, { quantile999: 1e-6, worst: 1, where });
  assert.equal(summary.worstIndex, 7);
  assert.ok(Math.abs(summary.mean - (1 + 9_999e-6) / 10_000) < 1e-12);
  assert.throws(() => expectSmallDifference(actual, expected, { worst: 0.5, where }), /worst at index 7: actual 1/);
  assert.throws(() => expectSmallDifference(actual, expected, { mean: 1e-5, where }), /mean of the difference/);
  assert.throws(() => expectSmallDifference(actual, expected, { quantile999: 9e-7, where }), /quantile999/);
});

test('runNode runs TypeScript anywhere with the input, the environment and the exit status as they are', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const source = `
    const text: string = await new Promise((done) => process.stdin.once('data', (data) => done(String(data))));
    console.log(text, process.argv[2], process.env.ADDED, process.cwd());
    console.error('to stderr');
    process.exitCode = 3;`;
  await writeFile(join(folder, 'script.mts'), source);
  const result = await runNode(['script.mts', 'argument'], { cwd: folder, input: 'in', env: { ADDED: 'added' } });
  assert.equal(result.stderr, 'to stderr\n');
  assert.match(result.stdout, /^in argument added .*stillhouse-/);
  assert.deepEqual([result.code, result.signal], [3, null]);
});

test('a started process can be killed, and one that hangs is', async () => {
  const { child, finished } = startNode(['--eval', 'console.log("up"); setInterval(() => {}, 1000)']);
  child.stdout?.once('data', () => child.kill('SIGTERM'));
  assert.equal((await finished).signal, 'SIGTERM');
  const hanging = await runNode(['--eval', 'setInterval(() => {}, 1000)'], { timeoutMs: 50 });
  assert.equal(hanging.signal, 'SIGKILL');
});

describe('a temporary folder goes with its test', () => {
  let folder = '';
  test('inner', async (t) => {
    folder = await makeTemporaryFolder(t);
    await writeFile(join(folder, 'file'), 'x');
  });
  test('afterwards', () => assert.ok(folder !== '' && !existsSync(folder)));
});
