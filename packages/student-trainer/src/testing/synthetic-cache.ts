import {
  type CacheDescription,
  type HiddenLabels,
  type LabelledRow,
  labelPositions,
  openCacheWriter,
  type TopKLabels,
} from '@stillhouse/teacher-cache';
import { randomNormals, randomUniforms } from '@stillhouse/testing';

export interface SyntheticTeacher {
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly rows: number;
  readonly k: number;
  readonly temperatures: readonly number[];
}

/**
 * Writes a cache of random rows whose labels all come from one distribution: hidden states and output matrix are
 * random, and the top-k labels are computed from their product in float64.
 */
export async function writeSyntheticCache(
  folder: string,
  teacher: SyntheticTeacher,
  changes: Partial<CacheDescription> = {},
): Promise<void> {
  const { vocabSize, hiddenSize, rows, k, temperatures } = teacher;
  const [normal, uniform] = [randomNormals(3), randomUniforms(4)];
  const matrix = Float32Array.from({ length: vocabSize * hiddenSize }, () => normal() / Math.sqrt(hiddenSize));
  const description: CacheDescription = {
    teacher: {
      name: 'synthetic',
      architecture: 'none',
      weightsSha256: '0'.repeat(64),
      configSha256: '0'.repeat(64),
      hiddenSize,
      layerCount: 1,
      vocabSize,
    },
    tokenizer: null,
    data: { sha256: '0'.repeat(64), name: 'synthetic', rowCount: rows },
    maxLength: null,
    limit: null,
    labels: { topk: { k, temperatures }, hidden: { layers: ['final'], dtype: 'float32' }, head: true },
    positions: 'response',
    rowsPerShard: 3,
    generator: { name: 'test', version: '0' },
    ...changes,
  };
  const makeRow = (index: number): LabelledRow => {
    const length = 4 + Math.floor(uniform() * 8);
    const inputIds = Int32Array.from({ length }, () => Math.floor(uniform() * vocabSize));
    const lossMask = Uint8Array.from({ length }, (_, t) => (t < 2 ? 0 : 1));
    const positions = labelPositions(lossMask, 'response');
    const values = Float32Array.from({ length: positions.length * hiddenSize }, () => 3 * normal());
    const hidden: HiddenLabels = { layer: 'final', dtype: 'float32', width: hiddenSize, values };
    return {
      row: { id: `row-${index}`, inputIds, lossMask, split: index % 4 === 3 ? 'test' : 'train' },
      positions,
      ...(description.labels.topk === null ? {} : { topk: exactTopK(values, matrix, teacher) }),
      ...(description.labels.hidden === null ? {} : { hidden: new Map([['final', hidden]]) }),
    };
  };
  const writer = await openCacheWriter(folder, description, { totalRows: rows });
  try {
    if (description.labels.head)
      await writer.putOutputMatrix({
        dtype: 'float32',
        rows: vocabSize,
        columns: hiddenSize,
        chunks: [new Uint8Array(matrix.buffer)],
      });
    for (let shard = 0; shard < writer.shardCount; shard++) {
      const [first, end] = writer.shardRange(shard);
      await writer.writeShard(
        shard,
        Array.from({ length: end - first }, (_, i) => makeRow(first + i)),
      );
    }
    await writer.finish();
  } finally {
    await writer.close();
  }
}

function exactTopK(
  hidden: Float32Array,
  matrix: Float32Array,
  { vocabSize, hiddenSize, k, temperatures }: SyntheticTeacher,
): TopKLabels {
  const positions = hidden.length / hiddenSize;
  const ids = new Int32Array(positions * k);
  const logprobs = new Float32Array(positions * k);
  const logZ = new Float32Array(positions * temperatures.length);
  for (let p = 0; p < positions; p++) {
    const logits = Float64Array.from({ length: vocabSize }, (_, v) => {
      let sum = 0;
      for (let i = 0; i < hiddenSize; i++) sum += hidden[p * hiddenSize + i]! * matrix[v * hiddenSize + i]!;
      return sum;
    });
    const logSumExp = (values: Float64Array) => Math.log(values.reduce((sum, value) => sum + Math.exp(value), 0));
    const normaliser = logSumExp(logits);
    const logp = logits.map((logit) => logit - normaliser);
    const order = Array.from(logp.keys()).sort((a, b) => logp[b]! - logp[a]!);
    for (let i = 0; i < k; i++) {
      ids[p * k + i] = order[i]!;
      logprobs[p * k + i] = logp[order[i]!]!;
    }
    temperatures.forEach((temperature, i) => {
      logZ[p * temperatures.length + i] = temperature === 1 ? 0 : logSumExp(logp.map((value) => value / temperature));
    });
  }
  return { counts: new Int32Array(positions).fill(k), ids, logprobs, logZ };
}
