import assert from 'node:assert/strict';
import { test } from 'node:test';
import { GraphBuilder, measureIntermediates } from './index.ts';

const MEBI = 2 ** 20;
/** Bytes of float32 [n]. */
const sizes = { n: MEBI };
const vector = 4 * MEBI;

test('a chain of element-wise operators needs one buffer, which each overwrites', () => {
  const g = new GraphBuilder('chain');
  const x = g.floatInput('x', ['n']);
  g.output('y', g.exp(g.neg(g.abs(g.mul(x, x)))));
  // The last writes into the output, the first into memory of the graph's own.
  assert.equal(measureIntermediates(g, sizes), vector);
});

test("what is read later stays alive, views take nothing, and outputs are the caller's", () => {
  const g = new GraphBuilder('branches');
  const x = g.floatInput('x', ['n']);
  const [a, b] = [g.exp(x), g.cos(x)];
  const c = g.mul(g.reshape(a, ['n', 1]), g.reshape(b, ['n', 1]));
  g.output('product', c);
  g.output('sum', g.reduceSum(g.add(c, g.reshape(a, ['n', 1])), [0]));
  // a and b; then a and the sum, which lies in a.
  assert.equal(measureIntermediates(g, sizes), 2 * vector);
});

test('a cut graph counts what is computed after the cut', () => {
  const g = new GraphBuilder('cut');
  const x = g.floatInput('x', ['n']);
  const [a, b] = [g.exp(x), g.sin(x)];
  const product = g.mul(a, b);
  g.output('y', g.reduceSum(g.mul(product, a), [0]));
  assert.equal(measureIntermediates(g, sizes), 3 * vector - vector);
  g.cut('saved', product);
  assert.equal(measureIntermediates(g, sizes), vector);
  assert.throws(() => measureIntermediates(g, {}), /no size was given for n/);
});
