import { StillhouseError } from '@stillhouse/errors';
import { type Dim, type Dtype, multiplyDims, type Shape, shapesEqual } from '@stillhouse/tensor-types';
import type { GradientPart, PartGradient } from '../gradients/gradient-part.ts';
import { inferTypes } from './operators.ts';
import type { ConstantData, FloatDtype, NoAttributes, Node, OperatorAttributes, OperatorName, Value } from './types.ts';

const NONE: NoAttributes = {};

/** What whoever compiles a graph may and must do with it, beyond what its nodes say. */
export interface GraphHints {
  /**
   * A value is computed twice on purpose, as keeping it from its first use to its second would take more memory than
   * there is: an engine then must not merge nodes that are alike.
   */
  readonly computesAgain?: boolean;
  /**
   * For a graph that may have thousands of nodes: shapes that only a run knows are inputs of the encoded graph wherever
   * it runs, and on the CPU of a length that the graph does not tell, so that ONNX Runtime knows not even the rank of
   * what is reshaped. Its memory planner compares each value's shape with those of all values that have ended, in time
   * that grows with the square of the nodes, and passes by values without one (docs/log.md).
   */
  readonly takesShapes?: boolean;
  /**
   * Whether the products of linear layers may be of coarser operands, where the user chose that. Losses do not allow
   * it.
   */
  readonly allowsCoarseProducts?: boolean;
}

/**
 * Builds one graph, node by node. Shape and dtype of every value are inferred at the call, so that a mistake is
 * an error at the line that makes it. Values are immutable; names follow the scopes they are made in.
 */
export class GraphBuilder {
  readonly name: string;
  /** The float type of this graph's constants and scalars. */
  readonly float: FloatDtype;
  readonly hints: GraphHints;
  readonly nodes: Node[] = [];
  readonly inputs: Value[] = [];
  readonly outputs = new Map<string, Value>();
  readonly constants: Value[] = [];
  /** Computed values that the encoded graph takes as inputs of these names instead of computing them. */
  readonly cuts = new Map<string, Value>();
  /** See {@link withGradient}. */
  readonly gradientParts: GradientPart[] = [];
  #scope: string[] = [];
  #names = new Map<string, number>();
  #constantCache = new Map<string, Value>();

  constructor(name: string, float: FloatDtype = 'float32', hints: GraphHints = {}) {
    this.name = name;
    this.float = float;
    this.hints = hints;
  }

  /** Everything made inside `body` gets `part/` before its name. */
  scope<T>(part: string, body: () => T): T {
    this.#scope.push(part);
    try {
      return body();
    } finally {
      this.#scope.pop();
    }
  }

  /**
   * Emits a part with a gradient of its own. `differentiate` then asks `emit`'s rule, which may use every value of the
   * part. A part inside of a part takes the outer one's gradient.
   * @param inputs the values that the gradient is given for
   */
  withGradient(
    inputs: readonly Value[],
    emit: () => { readonly outputs: readonly Value[]; readonly gradient: PartGradient },
  ): readonly Value[] {
    const first = this.nodes.length;
    const { outputs, gradient } = emit();
    const nodes = new Set(this.nodes.slice(first));
    const inside = this.gradientParts.filter((part) => [...part.nodes].some((node) => nodes.has(node)));
    for (const part of inside) this.gradientParts.splice(this.gradientParts.indexOf(part), 1);
    this.gradientParts.push({ nodes, inputs, outputs, rule: gradient });
    return outputs;
  }

  #unique(stem: string): string {
    const path = [...this.#scope, stem].join('/');
    const count = this.#names.get(path) ?? 0;
    this.#names.set(path, count + 1);
    return count === 0 ? path : `${path}_${count}`;
  }

  /** A graph input; `shape` may hold symbols. Names of inputs are used as they stand, whatever the scope. */
  input(name: string, dtype: Dtype, shape: Shape): Value {
    if (this.#names.has(name)) {
      throw new StillhouseError({
        code: 'GRAPH_DUPLICATE_NAME',
        where: `graph ${this.name}`,
        problem: `there is already a value named ${name}`,
        remedy: 'Give the input another name',
      });
    }
    this.#names.set(name, 1);
    const value: Value = { name, dtype, shape: shape.map((dim) => multiplyDims(dim)) };
    this.inputs.push(value);
    return value;
  }

  /** An input of the graph's float type. */
  floatInput(name: string, shape: Shape): Value {
    return this.input(name, this.float, shape);
  }

  /**
   * Makes `value` an output called `name`; an output that is an input or has another output's value gets its own node.
   */
  output(name: string, value: Value): Value {
    const isTaken = value.node === undefined || [...this.outputs.values()].includes(value);
    const own = isTaken ? this.identity(value) : value;
    if (this.outputs.has(name)) {
      throw new StillhouseError({
        code: 'GRAPH_DUPLICATE_NAME',
        where: `graph ${this.name}`,
        problem: `there is already an output named ${name}`,
        remedy: 'Give the output another name',
      });
    }
    this.outputs.set(name, own);
    return own;
  }

  /**
   * Cuts the graph: `value` becomes an input called `name` when the graph is encoded, and what only it depended on is
   * left out, inputs too. So a gradient can start from saved activations instead of computing them again.
   */
  cut(name: string, value: Value): void {
    if (this.cuts.has(name) || this.#names.has(name)) {
      throw new StillhouseError({
        code: 'GRAPH_DUPLICATE_NAME',
        where: `graph ${this.name}`,
        problem: `there is already a value named ${name}`,
        remedy: 'Give the cut another name',
      });
    }
    this.cuts.set(name, value);
  }

  constant(data: ConstantData, dtype: Dtype, shape: readonly number[]): Value {
    const key = `${dtype}${shape.join()}:${Array.from(data as ArrayLike<number | bigint>).join()}`;
    const known = this.#constantCache.get(key);
    if (known !== undefined) return known;
    const value: Value = { name: this.#unique(`constant_${this.constants.length}`), dtype, shape, constant: data };
    this.constants.push(value);
    this.#constantCache.set(key, value);
    return value;
  }

  /** A scalar of the graph's float type. */
  scalar(number: number): Value {
    return this.constant(this.float === 'float64' ? Float64Array.of(number) : Float32Array.of(number), this.float, []);
  }

  integers(numbers: readonly number[]): Value {
    return this.constant(BigInt64Array.from(numbers, BigInt), 'int64', [numbers.length]);
  }

  /** Applies any operator. The named methods below are the usual way in. */
  apply<Name extends OperatorName>(
    op: Name,
    inputs: readonly (Value | undefined)[],
    attributes: OperatorAttributes[Name],
  ): readonly Value[] {
    const name = this.#unique(op);
    const types = inferTypes(op, inputs, attributes, `graph ${this.name}, node ${name}`);
    const outputs: Value[] = [];
    const node: Node = { name, op, inputs, outputs, attributes };
    types.forEach((type, i) => {
      outputs.push({ name: i === 0 ? name : `${name}.${i}`, dtype: type.dtype, shape: type.shape, node });
    });
    this.nodes.push(node);
    return outputs;
  }

  #one<Name extends OperatorName>(
    op: Name,
    inputs: readonly (Value | undefined)[],
    attributes: OperatorAttributes[Name],
  ): Value {
    return this.apply(op, inputs, attributes)[0]!;
  }

  add(a: Value, b: Value): Value {
    return this.#one('Add', [a, b], NONE);
  }
  sub(a: Value, b: Value): Value {
    return this.#one('Sub', [a, b], NONE);
  }
  mul(a: Value, b: Value): Value {
    return this.#one('Mul', [a, b], NONE);
  }
  div(a: Value, b: Value): Value {
    return this.#one('Div', [a, b], NONE);
  }
  max(a: Value, b: Value): Value {
    return this.#one('Max', [a, b], NONE);
  }
  min(a: Value, b: Value): Value {
    return this.#one('Min', [a, b], NONE);
  }
  scale(a: Value, factor: number): Value {
    return factor === 1 ? a : this.mul(a, this.scalar(factor));
  }
  neg(x: Value): Value {
    return this.#one('Neg', [x], NONE);
  }
  abs(x: Value): Value {
    return this.#one('Abs', [x], NONE);
  }
  exp(x: Value): Value {
    return this.#one('Exp', [x], NONE);
  }
  log(x: Value): Value {
    return this.#one('Log', [x], NONE);
  }
  sqrt(x: Value): Value {
    return this.#one('Sqrt', [x], NONE);
  }
  reciprocal(x: Value): Value {
    return this.#one('Reciprocal', [x], NONE);
  }
  sigmoid(x: Value): Value {
    return this.#one('Sigmoid', [x], NONE);
  }
  cos(x: Value): Value {
    return this.#one('Cos', [x], NONE);
  }
  sin(x: Value): Value {
    return this.#one('Sin', [x], NONE);
  }
  round(x: Value): Value {
    return this.#one('Round', [x], NONE);
  }
  identity(x: Value): Value {
    return this.#one('Identity', [x], NONE);
  }
  cast(x: Value, to: Dtype): Value {
    return x.dtype === to ? x : this.#one('Cast', [x], { to });
  }
  /** The same bits read as another type of the same width (uint16 as bfloat16). */
  bitCast(x: Value, to: Dtype): Value {
    return this.#one('BitCast', [x], { to });
  }
  equal(a: Value, b: Value): Value {
    return this.#one('Equal', [a, b], NONE);
  }
  less(a: Value, b: Value): Value {
    return this.#one('Less', [a, b], NONE);
  }
  greaterOrEqual(a: Value, b: Value): Value {
    return this.#one('GreaterOrEqual', [a, b], NONE);
  }
  and(a: Value, b: Value): Value {
    return this.#one('And', [a, b], NONE);
  }
  not(a: Value): Value {
    return this.#one('Not', [a], NONE);
  }
  where(condition: Value, a: Value, b: Value): Value {
    return this.#one('Where', [condition, a, b], NONE);
  }
  matMul(a: Value, b: Value): Value {
    return this.#one('MatMul', [a, b], NONE);
  }
  /** op(A) · op(B) + C on matrices. */
  gemm(
    a: Value,
    b: Value,
    options: { readonly transA?: boolean; readonly transB?: boolean; readonly c?: Value | undefined } = {},
  ): Value {
    const { transA = false, transB = false, c } = options;
    return this.#one('Gemm', c === undefined ? [a, b] : [a, b, c], { transA, transB });
  }
  transpose(x: Value, permutation: readonly number[]): Value {
    return this.#one('Transpose', [x], { permutation });
  }
  reshape(x: Value, target: Shape): Value {
    const canonical = target.map((dim) => multiplyDims(dim));
    return shapesEqual(x.shape, canonical) ? x : this.#one('Reshape', [x], { target: canonical });
  }
  expand(x: Value, target: Shape): Value {
    const canonical = target.map((dim) => multiplyDims(dim));
    return shapesEqual(x.shape, canonical) ? x : this.#one('Expand', [x], { target: canonical });
  }
  zeros(shape: Shape, dtype: Dtype = this.float): Value {
    return this.expand(dtype === this.float ? this.scalar(0) : this.cast(this.scalar(0), dtype), shape);
  }
  concat(parts: readonly Value[], axis: number): Value {
    return this.#one('Concat', parts, { axis });
  }
  split(x: Value, axis: number, sizes: readonly number[]): readonly Value[] {
    return this.apply('Split', [x], { axis, sizes });
  }
  /**
   * The entries of `x` from `start` to `end` along an axis of known size: one copy, where `split` copies the rest too,
   * and ONNX Runtime keeps what nothing reads until the run ends. On WebGPU of floats only.
   */
  slice(x: Value, axis: number, start: number, end: number): Value {
    return start === 0 && end === x.shape[axis] ? x : this.#one('Slice', [x], { axis, start, end });
  }
  /** Rows of `data` by index: result shape is `indices.shape` followed by the rest of `data.shape`. */
  gather(data: Value, indices: Value): Value {
    return this.#one('Gather', [data, indices], NONE);
  }
  gatherElements(data: Value, indices: Value, axis: number): Value {
    return this.#one('GatherElements', [data, indices], { axis });
  }
  scatterElements(
    data: Value,
    indices: Value,
    updates: Value,
    { axis, reduction = 'none' }: { readonly axis: number; readonly reduction?: 'none' | 'add' },
  ): Value {
    return this.#one('ScatterElements', [data, indices, updates], { axis, reduction });
  }
  /**
   * Adds rows of `updates` [N, ...] to the rows of `data` that `indices` [N, 1] name; repeated indices add up, on one
   * thread (see `racesOnThreads`).
   */
  scatterAddRows(data: Value, indices: Value, updates: Value): Value {
    return this.#one('ScatterND', [data, indices, updates], { reduction: 'add' });
  }
  /** `data` with the rows that `indices` [N, 1] name replaced by the rows of `updates` [N, ...]. */
  scatterRows(data: Value, indices: Value, updates: Value): Value {
    return this.#one('ScatterND', [data, indices, updates], { reduction: 'none' });
  }
  reduceSum(x: Value, axes: readonly number[], keepDims = false): Value {
    return this.#one('ReduceSum', [x], { axes, keepDims });
  }
  reduceMean(x: Value, axes: readonly number[], keepDims = false): Value {
    return this.#one('ReduceMean', [x], { axes, keepDims });
  }
  reduceMax(x: Value, axes: readonly number[], keepDims = false): Value {
    return this.#one('ReduceMax', [x], { axes, keepDims });
  }
  reduceLogSumExp(x: Value, axes: readonly number[], keepDims = false): Value {
    return this.#one('ReduceLogSumExp', [x], { axes, keepDims });
  }
  reduceSumSquare(x: Value, axes: readonly number[], keepDims = false): Value {
    return this.#one('ReduceSumSquare', [x], { axes, keepDims });
  }
  sumAll(x: Value): Value {
    return this.reduceSum(
      x,
      x.shape.map((_, i) => i),
    );
  }
  softmax(x: Value, axis: number): Value {
    return this.#one('Softmax', [x], { axis });
  }
  logSoftmax(x: Value, axis: number): Value {
    return this.#one('LogSoftmax', [x], { axis });
  }
  /** x / sqrt(mean(x²) + epsilon) · scale over the last axis (Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4). */
  rmsNormalization(x: Value, scale: Value, epsilon: number): Value {
    return this.#one('RMSNormalization', [x, scale], { epsilon });
  }
  /**
   * Turns the halves of each head of `x` [B, T, heads · headDim] against each other (Su et al. 2021, arXiv 2104.09864,
   * in the half-split form): first · cos - second · sin, then second · cos + first · sin.
   * @param cos and `sin` [B, T, headDim / 2]; they take no gradient
   */
  rotaryEmbedding(x: Value, cos: Value, sin: Value, heads: number): Value {
    return this.#one('RotaryEmbedding', [x, cos, sin], { heads });
  }
  /** The k largest along `axis`, largest first. */
  topK(x: Value, k: number, axis: number): { readonly values: Value; readonly indices: Value } {
    const [values, indices] = this.apply('TopK', [x], { axis, k });
    return { values: values!, indices: indices! };
  }
  argMax(x: Value, axis: number): Value {
    return this.#one('ArgMax', [x], { axis });
  }

  /** Number of elements of a value as a dimension, e.g. `64*B*T`. */
  size(value: Value): Dim {
    return multiplyDims(...value.shape);
  }
}
