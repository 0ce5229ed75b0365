import { readFileSync } from 'node:fs';
import protobuf from 'protobufjs';
import type { GraphBuilder } from './builder.ts';
import { reachableNodes } from './reachable.ts';
import type { AttributeValue, Dtype, Node, OperatorName, Shape, Value } from './types.ts';
import { verifyGraph } from './verify.ts';

const IR_VERSION = 10;
/** 26 brings BitCast; every other operator here is older. */
const OPSET_VERSION = 26;

/** `TensorProto.DataType` of onnx.proto. */
const DATA_TYPES: { readonly [D in Dtype]: number } = {
  float32: 1,
  uint8: 2,
  int8: 3,
  uint16: 4,
  int32: 6,
  int64: 7,
  bool: 9,
  float16: 10,
  float64: 11,
  bfloat16: 16,
};

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

function encodeOperator(g: GraphBuilder, node: Node): EncodedOperator {
  const a = node.attributes as Readonly<Record<string, AttributeValue>>;
  const number = (name: string) => a[name] as number;
  switch (node.op satisfies OperatorName) {
    case 'Cast':
    case 'BitCast':
      return { attributes: [int('to', DATA_TYPES[a.to as Dtype])], extraInputs: [] };
    case 'Gemm':
      return { attributes: [int('transA', a.transA ? 1 : 0), int('transB', a.transB ? 1 : 0)], extraInputs: [] };
    case 'Transpose':
      return { attributes: [ints('perm', a.permutation as readonly number[])], extraInputs: [] };
    case 'Reshape':
      return { attributes: [], extraInputs: [g.shapeTensor(a.target as Shape, true)] };
    case 'Expand':
      return { attributes: [], extraInputs: [g.shapeTensor(a.target as Shape, false)] };
    case 'Split':
      return { attributes: [int('axis', number('axis'))], extraInputs: [g.integers(a.sizes as readonly number[])] };
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
  return { name, type: { tensor_type: { elem_type: DATA_TYPES[value.dtype], shape: { dim } } } };
}

function encodeConstant(value: Value): object {
  const data = value.constant!;
  return {
    name: value.name,
    data_type: DATA_TYPES[value.dtype],
    dims: value.shape,
    raw_data: new Uint8Array(data.buffer, data.byteOffset, data.byteLength),
  };
}

/**
 * The graph as ONNX protobuf bytes; dead nodes and inputs that nothing reads are left out.
 * @throws StillhouseError GRAPH_INVALID when the graph does not verify
 */
export function encodeModel(g: GraphBuilder): Uint8Array {
  verifyGraph(g);
  const outputNames = new Map([...g.outputs].map(([name, value]) => [value, name]));
  const cutNames = new Map([...g.cuts].map(([name, value]) => [value, name]));
  const given = new Set(g.cuts.values());
  const nameOf = (value: Value) => cutNames.get(value) ?? outputNames.get(value) ?? value.name;
  const encoded = new Map<Node, EncodedOperator>();
  for (const node of reachableNodes(g.nodes, g.outputs.values(), given)) encoded.set(node, encodeOperator(g, node));
  // Encoding adds the nodes that compute shapes at run time, after the nodes that use them: they go first.
  const shapeOperands = [...encoded.values()].flatMap(({ extraInputs }) => extraInputs);
  const shapeNodes = reachableNodes(g.nodes, shapeOperands, given).filter((node) => !encoded.has(node));
  const ordered = [...shapeNodes, ...encoded.keys()];
  const used = new Set<Value>();
  const nodes = ordered.map((node) => {
    const { attributes, extraInputs } = encoded.get(node) ?? encodeOperator(g, node);
    const operands = [...node.inputs, ...extraInputs];
    for (const operand of operands) if (operand !== undefined) used.add(operand);
    return {
      name: node.name,
      op_type: node.op,
      input: operands.map((operand) => (operand === undefined ? '' : nameOf(operand))),
      output: node.outputs.map(nameOf),
      attribute: attributes,
    };
  });
  const message = {
    ir_version: IR_VERSION,
    producer_name: 'stillhouse',
    opset_import: [
      { domain: '', version: OPSET_VERSION },
      { domain: 'com.microsoft', version: 1 },
    ],
    graph: {
      name: g.name,
      node: nodes,
      initializer: [...used].filter(({ constant }) => constant !== undefined).map(encodeConstant),
      input: [
        ...g.inputs.filter((input) => used.has(input)).map((input) => encodeType(input, input.name)),
        ...[...g.cuts].map(([name, value]) => encodeType(value, name)),
      ],
      output: [...g.outputs].map(([name, value]) => encodeType(value, name)),
    },
  };
  const type = loadModelType();
  return type.encode(type.fromObject(message)).finish();
}
