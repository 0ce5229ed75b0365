import { readFileSync } from 'node:fs';
import { type Dtype, ONNX_TYPES, type Shape, shapeInputName } from '@stillhouse/tensor-types';
import protobuf from 'protobufjs';
import type { GraphBuilder } from '../graph/builder.ts';
import { reachableNodes } from '../graph/reachable.ts';
import type { AttributeValue, Node, OperatorName, Value } from '../graph/types.ts';
import { verifyGraph, verifyWebGpuGraph } from '../graph/verify.ts';
import { chooseOldestOpset, type EncodingTarget, type ProductPrecision } from './encoding-target.ts';
import { type LoweredNode, lowerGemmToBfloat16, lowerLogSum, lowerRotaryEmbedding } from './lowering.ts';
import { emitShapeOperand } from './shape-operands.ts';

const IR_VERSION = 10;
/** 26 brings BitCast; every other operator here is older. */
const OPSET_VERSION = 26;

const ATTRIBUTE_FLOAT = 1;
const ATTRIBUTE_INT = 2;
const ATTRIBUTE_STRING = 3;
const ATTRIBUTE_INTS = 7;

let modelType: protobuf.Type | undefined;

function loadModelType(): protobuf.Type {
  modelType ??= protobuf
    .parse(readFileSync(new URL('./onnx.proto', import.meta.url), 'utf8'), { keepCase: true })
    .root.lookupType('onnx.ModelProto');
  return modelType;
}

const float = (name: string, f: number) => ({ name, f, type: ATTRIBUTE_FLOAT });
const int = (name: string, i: number) => ({ name, i, type: ATTRIBUTE_INT });
const ints = (name: string, values: readonly number[]) => ({ name, ints: values, type: ATTRIBUTE_INTS });
const string = (name: string, s: string) => ({ name, s: Buffer.from(s), type: ATTRIBUTE_STRING });

interface EncodedOperator {
  readonly attributes: readonly object[];
  /** Operands that ONNX wants as tensors and the builder keeps as attributes: shapes and axes. */
  readonly extraInputs: readonly Value[];
}

/** The operand that holds a shape, at most one of its entries -1 where `mayInfer`. */
type ShapeOperand = (target: Shape, mayInfer: boolean) => Value;

function encodeOperator(g: GraphBuilder, node: Node, shapeOperand: ShapeOperand): EncodedOperator {
  const a = node.attributes as Readonly<Record<string, AttributeValue>>;
  const number = (name: string) => a[name] as number;
  switch (node.op satisfies OperatorName) {
    case 'Cast':
    case 'BitCast':
      return { attributes: [int('to', ONNX_TYPES[a.to as Dtype])], extraInputs: [] };
    case 'Gemm':
      return { attributes: [int('transA', a.transA ? 1 : 0), int('transB', a.transB ? 1 : 0)], extraInputs: [] };
    case 'Transpose':
      return { attributes: [ints('perm', a.permutation as readonly number[])], extraInputs: [] };
    case 'Reshape':
      return { attributes: [], extraInputs: [shapeOperand(a.target as Shape, true)] };
    case 'Expand':
      return { attributes: [], extraInputs: [shapeOperand(a.target as Shape, false)] };
    case 'Split':
      return { attributes: [int('axis', number('axis'))], extraInputs: [g.integers(a.sizes as readonly number[])] };
    case 'Slice':
      return {
        attributes: [],
        extraInputs: [[number('start')], [number('end')], [number('axis')]].map((one) => g.integers(one)),
      };
    case 'Concat':
    case 'GatherElements':
    case 'Softmax':
    case 'LogSoftmax':
      return { attributes: [int('axis', number('axis'))], extraInputs: [] };
    case 'ScatterElements':
      return { attributes: [int('axis', number('axis')), string('reduction', a.reduction as string)], extraInputs: [] };
    case 'ScatterND':
      return { attributes: [string('reduction', a.reduction as string)], extraInputs: [] };
    case 'ReduceSum':
    case 'ReduceMean':
    case 'ReduceMax':
    case 'ReduceLogSumExp':
    case 'ReduceSumSquare':
      return {
        attributes: [int('keepdims', a.keepDims ? 1 : 0)],
        extraInputs: [g.integers(a.axes as readonly number[])],
      };
    case 'RMSNormalization':
      return { attributes: [int('axis', -1), float('epsilon', number('epsilon'))], extraInputs: [] };
    case 'RotaryEmbedding':
      return { attributes: [int('num_heads', number('heads'))], extraInputs: [] };
    case 'TopK':
      return { attributes: [int('axis', number('axis'))], extraInputs: [g.integers([number('k')])] };
    case 'ArgMax':
      return { attributes: [int('axis', number('axis')), int('keepdims', 0)], extraInputs: [] };
    case 'Shape':
      return { attributes: [int('start', number('start')), int('end', number('end'))], extraInputs: [] };
    default:
      return { attributes: [], extraInputs: [] };
  }
}

function encodeType(value: Value, name: string): object {
  const dim = value.shape.map((d) => (typeof d === 'number' ? { dim_value: d } : { dim_param: d }));
  return { name, type: { tensor_type: { elem_type: ONNX_TYPES[value.dtype], shape: { dim } } } };
}

function encodeConstant(value: Value): object {
  const data = value.constant!;
  return {
    name: value.name,
    data_type: ONNX_TYPES[value.dtype],
    dims: value.shape,
    raw_data: new Uint8Array(data.buffer, data.byteOffset, data.byteLength),
  };
}

interface EncodedNode {
  readonly name: string;
  readonly op_type: string;
  readonly input: readonly string[];
  readonly output: readonly string[];
  readonly attribute: readonly object[];
}

/**
 * The graph as ONNX protobuf bytes; dead nodes and inputs that nothing reads are left out.
 *
 * For a provider that is not the CPU's the operator set is the oldest that will do, and shapes that only a run knows
 * are inputs (`shapeInputName`), as they are for every target where the graph asks for it (`GraphHints.takesShapes`):
 * the runtime fills them in. Operators that the target lacks are lowered to ones that it has (lowering.ts); for
 * `webgpu` a graph with any other is refused. With the precision `bfloat16` a graph that allows it
 * (`GraphHints.allowsCoarseProducts`) multiplies matrices of bfloat16 in its Gemm nodes.
 * @throws StillhouseError GRAPH_INVALID when the graph does not verify, GRAPH_UNSUPPORTED_BY_DEVICE when the target has
 *   no kernel for some of its operators
 */
export function encodeModel(
  g: GraphBuilder,
  target: EncodingTarget = 'any',
  precision: ProductPrecision = 'float32',
): Uint8Array {
  verifyGraph(g);
  const outputNames = new Map([...g.outputs].map(([name, value]) => [value, name]));
  const cutNames = new Map([...g.cuts].map(([name, value]) => [value, name]));
  const given = new Set(g.cuts.values());
  const nameOf = (value: Value) => cutNames.get(value) ?? outputNames.get(value) ?? value.name;
  const live = reachableNodes(g.nodes, g.outputs.values(), given);
  if (target === 'webgpu') verifyWebGpuGraph(g.name, live);

  const shapeInputs = new Map<string, Value>();
  const shapeOperand: ShapeOperand = (shape, mayInfer) => {
    const symbolic = shape.filter((dim) => typeof dim === 'string').length;
    const isInferred = symbolic === 1 && mayInfer && !shape.includes(0);
    if ((target === 'any' && !g.hints.takesShapes) || symbolic === 0 || isInferred)
      return emitShapeOperand(g, shape, mayInfer);
    const name = shapeInputName(shape);
    const input = shapeInputs.get(name) ?? { name, dtype: 'int64', shape: [target === 'any' ? 'rank' : shape.length] };
    shapeInputs.set(name, input);
    return input;
  };
  const encoded = new Map<Node, EncodedOperator>();
  for (const node of live) encoded.set(node, encodeOperator(g, node, shapeOperand));
  // Encoding adds the nodes that compute shapes at run time, after the nodes that use them: they go first.
  const shapeOperands = [...encoded.values()].flatMap(({ extraInputs }) => extraInputs);
  const shapeNodes = reachableNodes(g.nodes, shapeOperands, given).filter((node) => !encoded.has(node));
  const ordered = [...shapeNodes, ...encoded.keys()];
  const used = new Set<Value>();
  const nodes = ordered.flatMap((node): readonly EncodedNode[] => {
    const { attributes, extraInputs } = encoded.get(node) ?? encodeOperator(g, node, shapeOperand);
    const lowered = lower(g, node, { target, precision, nameOf, used });
    if (lowered !== undefined) return lowered.map(encodeLowered);
    const operands = [...node.inputs, ...extraInputs];
    for (const operand of operands) if (operand !== undefined) used.add(operand);
    return [
      {
        name: node.name,
        op_type: node.op,
        input: operands.map((operand) => (operand === undefined ? '' : nameOf(operand))),
        output: node.outputs.map(nameOf),
        attribute: attributes,
      },
    ];
  });
  const message = {
    ir_version: IR_VERSION,
    producer_name: 'stillhouse',
    opset_import: [
      { domain: '', version: target === 'any' ? OPSET_VERSION : chooseOldestOpset(live) },
      { domain: 'com.microsoft', version: 1 },
    ],
    graph: {
      name: g.name,
      node: nodes,
      initializer: [...used].filter(({ constant }) => constant !== undefined).map(encodeConstant),
      input: [
        ...g.inputs.filter((input) => used.has(input)).map((input) => encodeType(input, input.name)),
        ...[...g.cuts].map(([name, value]) => encodeType(value, name)),
        ...[...shapeInputs.values()].map((value) => encodeType(value, value.name)),
      ],
      output: [...g.outputs].map(([name, value]) => encodeType(value, name)),
    },
  };
  const type = loadModelType();
  return type.encode(type.fromObject(message)).finish();
}

interface LoweringContext {
  readonly target: EncodingTarget;
  readonly precision: ProductPrecision;
  readonly nameOf: (value: Value) => string;
  /** Values that the encoded nodes read; lowered ones add theirs. */
  readonly used: Set<Value>;
}

/** The operators that stand for one that the target lacks or computes otherwise; `undefined` where it does not. */
function lower(
  g: GraphBuilder,
  node: Node,
  { target, precision, nameOf, used }: LoweringContext,
): readonly LoweredNode[] | undefined {
  const { name, op } = node;
  const a = node.attributes as Readonly<Record<string, AttributeValue>>;
  const result = node.outputs[0]!;
  const use = (value: Value) => {
    used.add(value);
    return nameOf(value);
  };
  const operand = (i: number) => use(node.inputs[i]!);
  const integers = (numbers: readonly number[]) => use(g.integers(numbers));
  if (op === 'RotaryEmbedding' && (target === 'webgpu' || result.dtype === 'float64')) {
    const [heads, width] = [Number(a.heads), Number(result.shape[2])];
    const headDim = width / heads;
    return lowerRotaryEmbedding({
      name,
      ...{ x: operand(0), cos: operand(1), sin: operand(2) },
      output: nameOf(result),
      constants: {
        perHead: integers([0, 0, heads, headDim]),
        table: integers([0, 0, 1, headDim / 2]),
        halves: integers([headDim / 2, headDim / 2]),
        whole: integers([0, 0, width]),
      },
    });
  }
  if (op === 'Gemm' && precision === 'bfloat16' && g.hints.allowsCoarseProducts && result.dtype === 'float32') {
    const c = node.inputs[2] && operand(2);
    const transposes = { transA: a.transA === true, transB: a.transB === true };
    return lowerGemmToBfloat16({ name, a: operand(0), b: operand(1), c, output: nameOf(result), ...transposes });
  }
  if (target !== 'webgpu' || (op !== 'LogSoftmax' && op !== 'ReduceLogSumExp')) return undefined;
  return lowerLogSum(op, {
    name,
    x: operand(0),
    output: nameOf(result),
    axes: integers((a.axes as readonly number[] | undefined) ?? [Number(a.axis ?? 0)]),
    keepDims: a.keepDims === true,
  });
}

const encodeLowered = ({ op, inputs, outputs, axis, keepDims, to, transA, transB }: LoweredNode): EncodedNode => ({
  name: `${outputs[0]}/${op}`,
  op_type: op,
  input: inputs,
  output: outputs,
  attribute: [
    ...(axis === undefined ? [] : [int('axis', axis)]),
    ...(keepDims === undefined ? [] : [int('keepdims', keepDims ? 1 : 0)]),
    ...(to === undefined ? [] : [int('to', ONNX_TYPES[to])]),
    ...(transA === undefined ? [] : [int('transA', transA ? 1 : 0)]),
    ...(transB === undefined ? [] : [int('transB', transB ? 1 : 0)]),
  ],
});
