import { GraphBuilder } from '@stillhouse/onnx-graph';
import type { DeviceTensor, Engine } from '@stillhouse/runtime';
import {
  type CacheDescription,
  type HiddenCodebook,
  type HiddenScale,
  isCodebook,
  type TeacherCache,
} from '@stillhouse/teacher-cache';
import type { SoftLabels } from '../losses/loss-graph.ts';

type FullLabels = Extract<SoftLabels, { readonly kind: 'full' }>;

/**
 * How full labels of a cache reach the loss: as the teacher's final states, or, of coded states, as their codes with a
 * 1 behind, [N, rank + 1]. Then the codebook is folded into the output matrix, W h = (W [decode | mean]) · (q, 1), and
 * nothing is decoded for each position.
 */
export function describeFullLabels(
  { teacher }: Pick<CacheDescription, 'teacher'>,
  scale: HiddenScale | undefined,
): FullLabels {
  return scale !== undefined && isCodebook(scale)
    ? { kind: 'full', teacherHidden: scale.rank + 1, isCoded: true }
    : { kind: 'full', teacherHidden: teacher!.hiddenSize! };
}

/** Rows of the output matrix that are folded together. */
const FOLDED_ROWS = 8192;

/**
 * The matrix that full labels of a cache meet, [vocabSize, teacherHidden] as `describeFullLabels` has it, float32.
 * @param vocabSize rows that take part
 * @throws StillhouseError CACHE_GROUP_ABSENT
 */
export async function uploadTeacherHead(
  engine: Engine,
  cache: Pick<TeacherCache, 'description' | 'readOutputMatrix'>,
  scale: HiddenScale | undefined,
  vocabSize: number,
): Promise<DeviceTensor> {
  const { vocabSize: rows, hiddenSize: width } = cache.description.teacher!;
  const hiddenSize = width!;
  const matrix = await cache.readOutputMatrix();
  const taken = rows === vocabSize ? matrix : matrix.slice(0, vocabSize * hiddenSize);
  const head = engine.upload(taken, 'float32', [vocabSize, hiddenSize], { transfer: true });
  if (scale === undefined || !isCodebook(scale)) return head;
  const folded = await foldCodebook(engine, head, scale);
  engine.free(head);
  return folded;
}

async function foldCodebook(
  engine: Engine,
  head: DeviceTensor,
  { rank, width, decode, mean }: HiddenCodebook,
): Promise<DeviceTensor> {
  const [vocabSize] = head.shape as [number, number];
  const columns = rank + 1;
  const basis = new Float32Array(columns * width);
  basis.set(decode);
  basis.set(mean, rank * width);
  const uploaded = engine.upload(basis, 'float32', [columns, width], { transfer: true });
  const folded = engine.allocate('float32', [vocabSize, columns]);
  const program = await engine.compile(foldGraph(width, columns));
  for (let from = 0; from < vocabSize; from += FOLDED_ROWS) {
    const size = Math.min(FOLDED_ROWS, vocabSize - from);
    const rows = engine.view(head, { offset: from * width, shape: [size, width] });
    const out = engine.view(folded, { offset: from * columns, shape: [size, columns] });
    await engine.run([{ kind: 'run', program, inputs: { rows, basis: uploaded }, outputs: { folded: out } }]);
    engine.free(rows);
    engine.free(out);
  }
  engine.free(uploaded);
  await program.release();
  return folded;
}

function foldGraph(width: number, columns: number): GraphBuilder {
  const g = new GraphBuilder('fold_codebook', 'float32');
  const [rows, basis] = [g.floatInput('rows', ['R', width]), g.floatInput('basis', [columns, width])];
  g.output('folded', g.gemm(rows, basis, { transB: true }));
  return g;
}
