import { differentiate, type FloatDtype, GraphBuilder } from '@stillhouse/onnx-graph';
import type { openEngine } from '@stillhouse/runtime';
import { type Divergence, emitSoftLoss, type LabelArray, type SoftLabels, sliceLabel } from '../index.ts';

type Engine = Awaited<ReturnType<typeof openEngine>>;

export interface SoftLossCase {
  readonly labels: SoftLabels;
  readonly temperature: number;
  /** [N, V] */
  readonly student: Float64Array;
  readonly vocabSize: number;
  /** Inputs `teacher.*` of the loss; all in float64, converted where the graph is float32. */
  readonly teacher: ReadonlyMap<string, LabelArray>;
  /** [V, teacher width], for full labels. */
  readonly head?: Float64Array;
  readonly float?: FloatDtype;
  /** Default: the forward KL. */
  readonly divergence?: Divergence;
}

export interface SoftLossResult {
  /** [N] in nats. */
  readonly perPosition: Float64Array;
  /** [N, V] of their sum by the student's logits. */
  readonly gradient: Float64Array;
}

/** The divergence on the labels at every position, without T², and its gradient. */
export async function computeSoftLoss(engine: Engine, one: SoftLossCase): Promise<SoftLossResult> {
  const { labels, temperature, student, vocabSize, teacher, head, float = 'float64' } = one;
  const { divergence = { kind: 'forward-kl' } } = one;
  const positions = student.length / vocabSize;
  const g = new GraphBuilder('soft_loss', float);
  const logits = g.floatInput('student', ['N', vocabSize]);
  const objective = { labels, divergence };
  const perPosition = emitSoftLoss(g, objective, logits, g.floatInput('temperature', []));
  const gradients = differentiate(g, { seeds: [[g.sumAll(perPosition), g.scalar(1)]], withRespectTo: [logits] });
  g.output('perPosition', perPosition);
  g.output('gradient', gradients.get(logits)!);
  const program = await engine.compile(g);
  const upload = (data: Float64Array, shape: readonly number[]) =>
    engine.upload(float === 'float64' ? data : Float32Array.from(data), float, shape);
  const inputs = {
    student: upload(student, [positions, vocabSize]),
    temperature: upload(Float64Array.of(temperature), []),
    ...(head === undefined ? {} : { 'teacher.head': upload(head, [vocabSize, head.length / vocabSize]) }),
    ...Object.fromEntries(
      [...teacher].map(([name, array]) => {
        const { data, shape, dtype } = sliceLabel(array, 0, positions);
        return [name, dtype === 'int64' ? engine.upload(data, dtype, shape) : upload(data as Float64Array, shape)];
      }),
    ),
  };
  const outputs = {
    perPosition: engine.allocate(float, [positions]),
    gradient: engine.allocate(float, [positions, vocabSize]),
  };
  await engine.run([{ kind: 'run', program, inputs, outputs }]);
  const [values, dz] = await engine.downloadMany([outputs.perPosition, outputs.gradient]);
  for (const tensor of [...Object.values(inputs), ...Object.values(outputs)]) engine.free(tensor);
  await program.release();
  const widen = (data: unknown) => Float64Array.from(data as Float64Array);
  return { perPosition: widen(values), gradient: widen(dz) };
}

/** log softmax(z / T), in float64. */
export function logSoftmaxAt(logits: Float64Array, temperature: number): Float64Array {
  const most = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const total = logits.reduce((sum, z) => sum + Math.exp((z - most) / temperature), 0);
  return logits.map((z) => (z - most) / temperature - Math.log(total));
}

/** Labels as `lossGraph` takes them, [N, width] or [N]. */
export const floats = (data: readonly number[] | Float64Array, width?: number): LabelArray => ({
  dtype: 'float64',
  data: Float64Array.from(data),
  width,
});

export const ids = (data: readonly number[], width: number): LabelArray => ({
  dtype: 'int64',
  data: BigInt64Array.from(data, BigInt),
  width,
});
