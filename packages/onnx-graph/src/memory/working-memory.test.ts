import assert from 'node:assert/strict';
import { test } from 'vitest';
import { GraphBuilder, measureWorkingMemory } from '../index.ts';
import { orderExecution } from './execution-order.ts';

const MEBI = 2 ** 20;
/** Bytes of float32 [n]. */
const sizes = { n: MEBI };
const vector = 4 * MEBI;

test('a chain of operators needs two buffers in turns, as none writes over what it reads', () => {
  const g = new GraphBuilder('chain');
  const x = g.floatInput('x', ['n']);
  g.output('y', g.exp(g.neg(g.abs(g.sqrt(g.mul(x, x))))));
  assert.equal(measureWorkingMemory(g, sizes), 2 * vector);
});

test("what is read later stays, views take nothing, and outputs are the caller's", () => {
  const g = new GraphBuilder('branches');
  const x = g.floatInput('x', ['n']);
  const [a, b] = [g.exp(g.reshape(x, ['n', 1])), g.cos(x)];
  const c = g.mul(a, g.reshape(b, ['n', 1]));
  g.output('product', c);
  g.output('sum', g.reduceSum(g.reshape(g.add(c, a), ['n']), [0]));
  // a and b; then a and the sum.
  assert.equal(measureWorkingMemory(g, sizes), 2 * vector);
});

test('what nothing reads stays to the end', () => {
  const takes = (cut: (g: GraphBuilder) => void) => {
    const g = new GraphBuilder('parts');
    cut(g);
    return measureWorkingMemory(g, sizes);
  };
  const input = (g: GraphBuilder) => g.floatInput('x', [2, 'n']);
  const halfOf = (g: GraphBuilder) => g.split(input(g), 0, [1, 1])[0]!;
  assert.equal(
    takes((g) => g.output('y', g.exp(g.exp(halfOf(g))))),
    3 * vector,
  );
  assert.equal(
    takes((g) => g.output('y', g.exp(g.exp(g.slice(input(g), 0, 0, 1))))),
    2 * vector,
  );
});

test('a larger value does not fit where a smaller one was', () => {
  const g = new GraphBuilder('sizes');
  const x = g.floatInput('x', ['n']);
  const doubled = g.expand(g.exp(g.neg(x)), [2, 'n']);
  g.output('sum', g.sumAll(g.exp(doubled)));
  // Two of n, then two of 2n, in regions of their own.
  assert.equal(measureWorkingMemory(g, sizes), 2 * vector + 2 * (2 * vector));
});

test('a cut graph counts what is computed after the cut', () => {
  const g = new GraphBuilder('cut');
  const x = g.floatInput('x', ['n']);
  const [a, b] = [g.exp(x), g.sin(x)];
  const product = g.mul(a, b);
  g.output('y', g.reduceSum(g.mul(product, a), [0]));
  assert.equal(measureWorkingMemory(g, sizes), 3 * vector);
  g.cut('saved', product);
  assert.equal(measureWorkingMemory(g, sizes), 2 * vector);
  assert.throws(() => measureWorkingMemory(g, {}), /no size was given for n/);
});

test('nodes run depth first, of what a node reads the last first, and none before what it reads', () => {
  const g = new GraphBuilder('order');
  const x = g.floatInput('x', ['n']);
  const branches = [1, 2, 3].map((i) => g.exp(g.scale(x, i + 1)));
  g.output('y', g.concat(branches, 0));
  const names = orderExecution(g.nodes).map(({ name }) => name);
  assert.deepEqual(names, ['Mul_2', 'Exp_2', 'Mul_1', 'Exp_1', 'Mul', 'Exp', 'Concat']);
});
