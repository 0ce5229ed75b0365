import assert from 'node:assert/strict';
import { isStillhouseError } from '@stillhouse/errors';
import { test } from 'vitest';
import { emitSumTo } from '../gradients/broadcast-sum.ts';
import {
  differentiate,
  encodeModel,
  findGraphProblems,
  GraphBuilder,
  printGraph,
  type Value,
  verifyGraph,
} from '../index.ts';

const refuses = (body: () => unknown, code: string, message: RegExp) =>
  assert.throws(body, (error) => {
    assert.ok(isStillhouseError(error, code), String(error));
    assert.match(error.message, message);
    return true;
  });

test('a wrong operand is an error at its call that names graph, node, expectation and finding', () => {
  const g = new GraphBuilder('wrong');
  const [a, b, ids] = [g.floatInput('a', ['N', 4]), g.floatInput('b', [3, 5]), g.input('ids', 'int64', ['N'])];
  refuses(
    () => g.add(a, b),
    'GRAPH_TYPE_ERROR',
    /graph wrong, node Add: shapes do not broadcast.*float32\[N, 4\] and float32\[3, 5\]/,
  );
  refuses(() => g.add(a, ids), 'GRAPH_TYPE_ERROR', /operand types do not fit/);
  refuses(
    () => g.gemm(a, b, { transB: true }),
    'GRAPH_TYPE_ERROR',
    /inner dimensions differ; expected K = 4, got K = 5/,
  );
  refuses(() => g.matMul(a, b), 'GRAPH_TYPE_ERROR', /matrices do not fit/);
  refuses(() => g.reshape(a, ['N', 5]), 'GRAPH_TYPE_ERROR', /number of elements changes/);
  refuses(() => g.transpose(a, [0, 0]), 'GRAPH_TYPE_ERROR', /not a permutation/);
  refuses(() => g.split(b, 1, [2, 2]), 'GRAPH_TYPE_ERROR', /parts do not add up; expected 5, got 2 \+ 2/);
  refuses(() => g.concat([a, b], 0), 'GRAPH_TYPE_ERROR', /shapes differ off the axis/);
  refuses(() => g.gather(b, a), 'GRAPH_TYPE_ERROR', /indices have the wrong type; expected int64/);
  refuses(() => g.topK(b, 6, 1), 'GRAPH_TYPE_ERROR', /k is out of range; expected 1 to 5, got 6/);
  refuses(() => g.slice(b, 0, 0, 9), 'GRAPH_TYPE_ERROR', /the slice is not inside the axis/);
  refuses(() => g.reduceSum(b, [2]), 'GRAPH_TYPE_ERROR', /axis out of range/);
  refuses(() => g.where(a, a, a), 'GRAPH_TYPE_ERROR', /condition has the wrong type/);
  refuses(() => g.rmsNormalization(a, b, 1e-6), 'GRAPH_TYPE_ERROR', /scale does not fit/);
  refuses(() => g.exp(ids), 'GRAPH_TYPE_ERROR', /does not take this type/);
  refuses(() => g.expand(b, [3, 6]), 'GRAPH_TYPE_ERROR', /does not expand/);
  refuses(() => emitSumTo(g, b, [2, 5]), 'GRAPH_TYPE_ERROR', /cannot undo a broadcast/);
  refuses(() => g.apply('Add', [a], {}), 'GRAPH_TYPE_ERROR', /wrong number of inputs; expected 2, got 1/);
  refuses(() => g.floatInput('a', [1]), 'GRAPH_DUPLICATE_NAME', /already a value named a/);
  g.output('y', a);
  refuses(() => g.output('y', b), 'GRAPH_DUPLICATE_NAME', /already an output named y/);
});

test('a shape whose symbol no input has cannot be encoded', () => {
  const g = new GraphBuilder('unknown');
  g.output('y', g.expand(g.floatInput('x', [1]), ['M']));
  refuses(() => encodeModel(g), 'GRAPH_UNKNOWN_SYMBOL', /no input has a dimension M/);
});

test('a gradient through an operator without one is refused, with its reason', () => {
  const g = new GraphBuilder('round');
  const x = g.floatInput('x', [2]);
  const y = g.sumAll(g.round(x));
  refuses(
    () => differentiate(g, { seeds: [[y, g.scalar(1)]], withRespectTo: [x] }),
    'GRAPH_NOT_DIFFERENTIABLE',
    /through Round, which has none: its derivative is zero/,
  );
  refuses(
    () => differentiate(g, { seeds: [[y, x]], withRespectTo: [x] }),
    'GRAPH_TYPE_ERROR',
    /a gradient must have the type of its value/,
  );
});

test('the verifier finds each defect of a tampered graph', () => {
  const build = () => {
    const g = new GraphBuilder('g');
    const x = g.floatInput('x', ['N', 2]);
    g.output('y', g.exp(g.neg(x)));
    return g;
  };
  assert.deepEqual(findGraphProblems(build()), []);
  const tampered: readonly [(g: GraphBuilder) => void, RegExp][] = [
    [(g) => g.nodes.reverse(), /operand Neg is not defined before it/],
    [(g) => g.outputs.clear(), /no output/],
    [(g) => g.inputs.pop(), /operand x is not defined/],
    [
      (g) => Object.assign(g.nodes[0]!.outputs[0]!, { shape: ['N', 3] }),
      /output 0 is stored as float32\[N, 3\], inferred float32\[N, 2\]/,
    ],
    [(g) => Object.assign(g.nodes[0]!.outputs[0]!, { dtype: 'int64' }), /stored as int64/],
    [(g) => Object.assign(g.nodes[1]!.outputs[0]!, { name: 'x' }), /name x is taken twice/],
    [
      (g) => g.outputs.set('z', { name: 'elsewhere', dtype: 'float32', shape: [] } as Value),
      /output z: elsewhere is not computed/,
    ],
    [
      (g) => g.constants.push({ name: 'c', dtype: 'float32', shape: [3], constant: Float32Array.of(1) }),
      /constant c: 1 elements for \[3\]/,
    ],
  ];
  for (const [tamper, expected] of tampered) {
    const g = build();
    tamper(g);
    assert.match(findGraphProblems(g).join('\n'), expected);
    refuses(() => verifyGraph(g), 'GRAPH_INVALID', expected);
  }
});

test('the text dump has a line a node, names that mirror scopes, and no dead node', () => {
  const g = new GraphBuilder('layer');
  const x = g.floatInput('x', ['B*T', 4]);
  const w = g.floatInput('layers.3.self_attn.q_proj.weight', [2, 4]);
  const y = g.scope('layers.3', () =>
    g.scope('self_attn', () => g.scope('q_proj', () => g.gemm(x, w, { transB: true }))),
  );
  g.neg(y);
  g.output('y', g.scale(y, 0.5));
  assert.equal(
    printGraph(g),
    `graph layer (float32)
  input  x: float32[B*T, 4]
  input  layers.3.self_attn.q_proj.weight: float32[2, 4]
  layers.3/self_attn/q_proj/Gemm: float32[B*T, 2] = Gemm(x, layers.3.self_attn.q_proj.weight, transA=false, transB=true)
  Mul: float32[B*T, 2] = Mul(layers.3/self_attn/q_proj/Gemm, 0.5)
  output y = Mul: float32[B*T, 2]
`,
  );
});
