import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import protobuf from 'protobufjs';
import { test } from 'vitest';
import { encodeModel, GraphBuilder, type ProductPrecision } from '../index.ts';

const modelType = protobuf
  .parse(readFileSync(new URL('./onnx.proto', import.meta.url), 'utf8'), { keepCase: true })
  .root.lookupType('onnx.ModelProto');

interface DecodedNode {
  readonly op_type: string;
  readonly input: readonly string[];
  readonly output: readonly string[];
  readonly attribute?: readonly { readonly name: string; readonly i?: string }[];
}

/** Nodes of the encoded model as lines: operator, attributes, operands, result. */
function listNodes(g: GraphBuilder, precision: ProductPrecision): readonly string[] {
  const model = modelType.toObject(modelType.decode(encodeModel(g, 'cuda', precision)), { longs: String });
  return (model.graph.node as readonly DecodedNode[]).map(({ op_type, input, output, attribute = [] }) => {
    const attributes = attribute.map(({ name, i }) => ` ${name}=${i ?? 0}`).join('');
    return `${op_type}${attributes} ${input.join(' ')} -> ${output.join(' ')}`;
  });
}

function makeGraph(float: 'float32' | 'float64', allows: boolean): GraphBuilder {
  const g = new GraphBuilder('accumulate', float, { allowsCoarseProducts: allows });
  const [x, w, sum] = [g.floatInput('x', ['N', 4]), g.floatInput('w', [3, 4]), g.floatInput('sum', ['N', 3])];
  g.output('y', g.gemm(x, w, { transB: true, c: sum }));
  return g;
}

test('a graph that allows it multiplies matrices of bfloat16 and adds to float32', () => {
  assert.deepEqual(listNodes(makeGraph('float32', true), 'bfloat16'), [
    'Cast to=16 x -> Gemm/a',
    'Cast to=16 w -> Gemm/b',
    'Gemm transA=0 transB=1 Gemm/a Gemm/b -> Gemm/rounded',
    'Cast to=1 Gemm/rounded -> Gemm/product',
    'Add Gemm/product sum -> y',
  ]);
  const g = new GraphBuilder('product', 'float32', { allowsCoarseProducts: true });
  g.output('y', g.gemm(g.floatInput('a', [2, 4]), g.floatInput('b', [2, 3]), { transA: true }));
  assert.equal(listNodes(g, 'bfloat16').at(-1), 'Cast to=1 Gemm/rounded -> y');
});

test('other graphs, other types and other precisions keep their products', () => {
  const asItStands = ['Gemm transA=0 transB=1 x w sum -> y'];
  assert.deepEqual(listNodes(makeGraph('float32', false), 'bfloat16'), asItStands);
  assert.deepEqual(listNodes(makeGraph('float64', true), 'bfloat16'), asItStands);
  for (const precision of ['float32', 'tf32'] as const) {
    assert.deepEqual(listNodes(makeGraph('float32', true), precision), asItStands);
  }
});
