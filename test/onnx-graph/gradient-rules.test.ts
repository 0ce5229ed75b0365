import assert from 'node:assert/strict';
import { type GradientCase, gradientError } from '@stillhouse/gradient-check';
import { differentiate, GRADIENT_RULES, GraphBuilder, type OperatorName, type Value } from '@stillhouse/onnx-graph';
import { openEngine } from '@stillhouse/runtime';
import { afterAll, test } from 'vitest';

const engine = await openEngine({ threads: 1 });
afterAll(() => engine.close());

const ids = (g: GraphBuilder, values: readonly number[], shape: readonly number[]) =>
  g.constant(BigInt64Array.from(values, BigInt), 'int64', shape);
const bools = (g: GraphBuilder, values: readonly number[], shape: readonly number[]) =>
  g.cast(ids(g, values, shape), 'bool');
const unary = (build: (g: GraphBuilder, x: Value) => Value, domain?: readonly [number, number]): GradientCase => ({
  inputs: [{ shape: [2, 3], ...(domain === undefined ? {} : { domain }) }],
  build: (g, [x]) => [build(g, x!)],
});
const positive = [0.3, 2] as const;
/** Not of unit length: the tables may be scaled. */
const rotaryTables = (g: GraphBuilder, shape: readonly [number, number, number]): [Value, Value] => {
  const count = shape[0] * shape[1] * shape[2];
  const table = (of: (angle: number) => number) =>
    g.constant(
      Float64Array.from({ length: count }, (_, i) => 0.7 * of(i + 1)),
      'float64',
      shape,
    );
  return [table(Math.cos), table(Math.sin)];
};

/** At least one case for each operator with a rule: broadcasting, every attribute, every input. */
const CASES: { readonly [Name in OperatorName]?: readonly GradientCase[] } = {
  Add: [
    { inputs: [{ shape: [2, 3] }, { shape: [3] }], build: (g, [a, b]) => [g.add(a!, b!)] },
    { inputs: [{ shape: [2, 1, 3] }, { shape: [4, 1] }], build: (g, [a, b]) => [g.add(a!, b!)] },
  ],
  Sub: [{ inputs: [{ shape: [2, 3] }, { shape: [2, 1] }], build: (g, [a, b]) => [g.sub(a!, b!)] }],
  Mul: [
    { inputs: [{ shape: [2, 3] }, { shape: [] }], build: (g, [a, b]) => [g.mul(a!, b!)] },
    { inputs: [{ shape: [3] }], build: (g, [a]) => [g.mul(a!, a!)] },
  ],
  Div: [{ inputs: [{ shape: [3] }, { shape: [2, 3], domain: positive }], build: (g, [a, b]) => [g.div(a!, b!)] }],
  Neg: [unary((g, x) => g.neg(x))],
  Exp: [unary((g, x) => g.exp(x))],
  Log: [unary((g, x) => g.log(x), positive)],
  Sqrt: [unary((g, x) => g.sqrt(x), positive)],
  Reciprocal: [unary((g, x) => g.reciprocal(x), positive)],
  Sigmoid: [unary((g, x) => g.sigmoid(x))],
  Cos: [unary((g, x) => g.cos(x))],
  Sin: [unary((g, x) => g.sin(x))],
  Identity: [unary((g, x) => g.identity(x))],
  Cast: [unary((g, x) => g.cast(g.apply('Cast', [x], { to: 'float64' })[0]!, 'float64'))],
  Where: [
    {
      inputs: [{ shape: [2, 3] }, { shape: [3] }],
      build: (g, [a, b]) => [g.where(bools(g, [1, 0, 0, 0, 1, 1], [2, 3]), a!, b!)],
    },
  ],
  MatMul: [{ inputs: [{ shape: [2, 2, 3] }, { shape: [2, 3, 4] }], build: (g, [a, b]) => [g.matMul(a!, b!)] }],
  Gemm: [
    ...[false, true].flatMap((transA) =>
      [false, true].map(
        (transB): GradientCase => ({
          inputs: [{ shape: transA ? [3, 2] : [2, 3] }, { shape: transB ? [4, 3] : [3, 4] }, { shape: [4] }],
          build: (g, [a, b, c]) => [g.gemm(a!, b!, { transA, transB, c: c! })],
        }),
      ),
    ),
    // One operand in two products: contributions accumulate in the operator.
    {
      inputs: [{ shape: [2, 3] }, { shape: [3, 3] }],
      build: (g, [a, b]) => [g.gemm(g.gemm(a!, b!), b!, { transB: true, c: a! })],
    },
  ],
  Transpose: [{ inputs: [{ shape: [2, 3, 4] }], build: (g, [x]) => [g.transpose(x!, [2, 0, 1])] }],
  Reshape: [{ inputs: [{ shape: [2, 6] }], build: (g, [x]) => [g.reshape(x!, [3, 4])] }],
  Expand: [{ inputs: [{ shape: [2, 1] }], build: (g, [x]) => [g.expand(x!, [4, 2, 3])] }],
  Concat: [{ inputs: [{ shape: [2, 1] }, { shape: [2, 3] }], build: (g, [a, b]) => [g.concat([a!, b!, a!], 1)] }],
  Split: [{ inputs: [{ shape: [2, 5] }], build: (g, [x]) => g.split(x!, 1, [1, 2, 2]).slice(0, 2) }],
  Slice: [
    { inputs: [{ shape: [2, 5] }], build: (g, [x]) => [g.slice(x!, 1, 1, 3), g.slice(x!, 0, 0, 1)] },
    { inputs: [{ shape: [2, 5] }], build: (g, [x]) => [g.slice(x!, 1, 3, 5)] },
  ],
  Gather: [{ inputs: [{ shape: [4, 2] }], build: (g, [x]) => [g.gather(x!, ids(g, [3, 0, 3, 1, 1, 1], [2, 3]))] }],
  GatherElements: [
    { inputs: [{ shape: [2, 4] }], build: (g, [x]) => [g.gatherElements(x!, ids(g, [3, 3, 0, 1, 2, 1], [2, 3]), 1)] },
  ],
  ScatterElements: [
    {
      inputs: [{ shape: [2, 4] }, { shape: [2, 2] }],
      build: (g, [x, u]) => [g.scatterElements(x!, ids(g, [3, 1, 0, 2], [2, 2]), u!, { axis: 1 })],
    },
    {
      inputs: [{ shape: [2, 4] }, { shape: [2, 2] }],
      build: (g, [x, u]) => [g.scatterElements(x!, ids(g, [3, 3, 0, 2], [2, 2]), u!, { axis: 1, reduction: 'add' })],
    },
  ],
  ScatterND: [
    {
      inputs: [{ shape: [4, 2] }, { shape: [3, 2] }],
      build: (g, [x, u]) => [g.scatterAddRows(x!, ids(g, [2, 0, 2], [3, 1]), u!)],
    },
  ],
  ReduceSum: [
    { inputs: [{ shape: [2, 3, 2] }], build: (g, [x]) => [g.reduceSum(x!, [0, 2]), g.reduceSum(x!, [1], true)] },
  ],
  ReduceMean: [
    { inputs: [{ shape: [2, 3, 2] }], build: (g, [x]) => [g.reduceMean(x!, [1]), g.reduceMean(x!, [0, 2], true)] },
  ],
  ReduceLogSumExp: [
    { inputs: [{ shape: [2, 3] }], build: (g, [x]) => [g.reduceLogSumExp(x!, [1]), g.reduceLogSumExp(x!, [0], true)] },
  ],
  ReduceSumSquare: [
    { inputs: [{ shape: [2, 3] }], build: (g, [x]) => [g.reduceSumSquare(x!, [1]), g.reduceSumSquare(x!, [0], true)] },
  ],
  Softmax: [{ inputs: [{ shape: [2, 3, 2] }], build: (g, [x]) => [g.softmax(x!, 2), g.softmax(x!, 1)] }],
  LogSoftmax: [{ inputs: [{ shape: [2, 3] }], build: (g, [x]) => [g.logSoftmax(x!, 1)] }],
  RMSNormalization: [
    { inputs: [{ shape: [2, 2, 3] }, { shape: [3] }], build: (g, [x, w]) => [g.rmsNormalization(x!, w!, 0.1)] },
  ],
  RotaryEmbedding: [
    { inputs: [{ shape: [2, 3, 8] }], build: (g, [x]) => [g.rotaryEmbedding(x!, ...rotaryTables(g, [2, 3, 2]), 2)] },
  ],
  TopK: [{ inputs: [{ shape: [2, 5] }], build: (g, [x]) => [g.topK(x!, 2, 1).values] }],
};

test('every operator with a rule has a case and no other has', () => {
  const withRule = Object.entries(GRADIENT_RULES).flatMap(([name, rule]) => (typeof rule === 'function' ? [name] : []));
  assert.deepEqual(Object.keys(CASES).sort(), withRule.sort());
});

for (const [name, cases] of Object.entries(CASES)) {
  test(`${name}: its rule agrees with central differences in float64`, async () => {
    for (const [i, one] of cases.entries()) {
      const error = await gradientError(engine, one);
      assert.ok(error < 1e-7, `case ${i}: relative error ${error}`);
    }
  });
}

test('a planted wrong rule is caught, whichever rule it is', async () => {
  for (const [name, cases] of Object.entries(CASES)) {
    const right = GRADIENT_RULES[name as 'Mul'];
    if (typeof right !== 'function') continue;
    const wrong: typeof right = (context) => {
      const [first, ...rest] = right(context);
      const scaled = typeof first === 'function' ? first(undefined) : first;
      return [
        scaled === undefined ? undefined : context.g.scale(scaled, 1.001),
        ...rest.map((one) => (typeof one === 'function' ? one(undefined) : one)),
      ].map((one, i) => (scaled === undefined && i === 1 && one !== undefined ? context.g.scale(one, 1.001) : one));
    };
    const error = await gradientError(engine, { ...cases[0]!, rules: { ...GRADIENT_RULES, [name]: wrong } });
    assert.ok(error > 1e-5, `a wrong rule for ${name} went unseen: relative error ${error}`);
  }
});

/** x² as a part whose gradient is `factor` x dy. */
const square = (g: GraphBuilder, x: Value, factor: number) =>
  g.withGradient([x], () => {
    const y = g.mul(x, x);
    return { outputs: [g.identity(y)], gradient: ([dy]) => [g.mul(g.scale(x, factor), dy!)] };
  })[0]!;

test('a part with a gradient of its own is differentiated by it, and inside a larger part by that of the larger', async () => {
  const error = (factor: number) =>
    gradientError(engine, { inputs: [{ shape: [2, 3] }], build: (g, [x]) => [g.exp(square(g, g.sin(x!), factor))] });
  assert.ok((await error(2)) < 1e-7);
  assert.ok((await error(2.01)) > 1e-3);
  const nested: GradientCase = {
    inputs: [{ shape: [3] }],
    build: (g, [x]) =>
      g.withGradient([x!], () => {
        const y = square(g, x!, 100);
        return { outputs: [y], gradient: ([dy]) => [g.mul(g.scale(x!, 2), dy!)] };
      }),
  };
  assert.ok((await gradientError(engine, nested)) < 1e-7);
});

test('a part can be left to the rules of its operators, which is how its own is checked', () => {
  const g = new GraphBuilder('g', 'float64');
  const x = g.floatInput('x', [3]);
  const y = square(g, x, 100);
  const seeds = [[y, g.floatInput('dy', [3])]] as const;
  const before = g.nodes.length;
  differentiate(g, { seeds, withRespectTo: [x], ignoresParts: true });
  assert.deepEqual(
    g.nodes.slice(before).map(({ op }) => op),
    ['Mul', 'Mul', 'Add'],
  );
});

test('what a part computes on the way is no use to others', () => {
  const g = new GraphBuilder('g', 'float64');
  const x = g.floatInput('x', [3]);
  let inner: Value | undefined;
  const [y] = g.withGradient([x], () => {
    inner = g.mul(x, x);
    return { outputs: [g.exp(inner)], gradient: ([dy]) => [dy] };
  });
  const z = g.add(y!, inner!);
  assert.throws(() => differentiate(g, { seeds: [[z, g.floatInput('dy', [3])]], withRespectTo: [x] }), /used outside/);
});
