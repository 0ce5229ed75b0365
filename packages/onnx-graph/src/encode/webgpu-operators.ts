import type { Dtype } from '@stillhouse/tensor-types';
import type { AttributeValue, Node, OperatorName } from '../graph/types.ts';
import { chooseOldestOpset } from './encoding-target.ts';

/**
 * What ONNX Runtime's WebGPU provider computes, as of onnxruntime 1.30 and without its int64 kernels, which the Node.js
 * binding has no way to ask for. Everything else would be computed by the CPU, with copies there and back.
 */
interface Support {
  /** Element types of each operand; the last entry stands for all further ones. */
  readonly operands: readonly (readonly Dtype[])[];
  /** Element types that Cast may arrive at. */
  readonly to?: readonly Dtype[];
  /** The newest operator set that the provider has a kernel for. */
  readonly opset?: number;
}

interface NoSupport {
  readonly reason: string;
}

const FLOATS: readonly Dtype[] = ['float32', 'float16'];
const NUMBERS: readonly Dtype[] = [...FLOATS, 'int32'];
const INDICES: readonly Dtype[] = ['int64', 'int32'];
const BOOL: readonly Dtype[] = ['bool'];

const floats: Support = { operands: [FLOATS] };
const numbers: Support = { operands: [NUMBERS] };
const float32: Support = { operands: [['float32']] };

export const WEBGPU_OPERATORS: { readonly [Name in OperatorName]: Support | NoSupport } = {
  Add: numbers,
  Sub: numbers,
  Mul: numbers,
  Div: numbers,
  Max: numbers,
  Min: numbers,
  Neg: floats,
  Abs: floats,
  Exp: floats,
  Log: floats,
  Sqrt: floats,
  Reciprocal: floats,
  Sigmoid: floats,
  Cos: { ...floats, opset: 21 },
  Sin: { ...floats, opset: 21 },
  Round: { reason: 'it has no kernel' },
  Identity: numbers,
  Cast: { operands: [[...NUMBERS, 'bool', 'uint8']], to: [...NUMBERS, 'bool'] },
  BitCast: { reason: 'it has no kernel' },
  Equal: numbers,
  Less: numbers,
  GreaterOrEqual: numbers,
  And: { operands: [BOOL] },
  Not: { operands: [BOOL] },
  Where: { operands: [BOOL, NUMBERS] },
  MatMul: floats,
  Gemm: floats,
  Transpose: numbers,
  Reshape: numbers,
  Expand: numbers,
  Concat: numbers,
  Split: numbers,
  Slice: floats,
  Gather: { operands: [NUMBERS, INDICES] },
  GatherElements: { operands: [FLOATS, INDICES] },
  ScatterElements: { operands: [['float32'], INDICES, ['float32']] },
  ScatterND: { operands: [['float32'], INDICES, ['float32']] },
  ReduceSum: float32,
  ReduceMean: float32,
  ReduceMax: float32,
  // Lowered: the kernel adds up exponentials as they are, and log Σ exp of a 100 comes out infinite.
  ReduceLogSumExp: float32,
  ReduceSumSquare: float32,
  Softmax: floats,
  LogSoftmax: floats, // Lowered: it has no kernel.
  RMSNormalization: floats,
  RotaryEmbedding: floats, // Lowered, see lowering.ts.
  TopK: float32,
  ArgMax: { operands: [['float32']] },
  Shape: { reason: 'shapes come from the run, see `shapeInputName`' },
};

/** Why the WebGPU provider cannot compute a graph's nodes, each problem naming its node; empty when it can. */
export function findWebGpuProblems(nodes: readonly Node[]): readonly string[] {
  const opset = chooseOldestOpset(nodes);
  return nodes.flatMap((node) => {
    const support = WEBGPU_OPERATORS[node.op];
    const where = `${node.op} (${node.name})`;
    if ('reason' in support) return [`${where}: ${support.reason}`];
    const problems = node.inputs.flatMap((input, i) => {
      const allowed = support.operands[Math.min(i, support.operands.length - 1)]!;
      return input === undefined || allowed.includes(input.dtype)
        ? []
        : [`${where}: operand ${i} is ${input.dtype}, not ${allowed.join(' or ')}`];
    });
    const to = (node.attributes as Readonly<Record<string, AttributeValue>>).to as Dtype | undefined;
    if (support.to !== undefined && !support.to.includes(to!)) problems.push(`${where}: to ${to}`);
    if (support.opset !== undefined && support.opset < opset) {
      problems.push(`${where}: in one graph with an operator of set ${opset}, and set ${support.opset} is the newest`);
    }
    return problems;
  });
}
