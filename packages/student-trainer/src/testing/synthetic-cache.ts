import {
  type CacheDescription,
  encodeStates,
  fitCoordinateCoder,
  type HiddenCodebook,
  type HiddenLabels,
  type HiddenLayer,
  type LabelledRow,
  labelPositions,
  openCacheWriter,
  quantiseHidden,
  type SampledLabels,
  type TopKLabels,
} from '@stillhouse/teacher-cache';
import { randomNormals, randomUniforms } from '@stillhouse/testing';

export interface SyntheticTeacher {
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly rows: number;
  /** Tokens of every row. Default: 4 to 11, by chance. */
  readonly rowTokens?: number;
  readonly k: number;
  readonly temperatures: readonly number[];
  /** Default 1. */
  readonly layerCount?: number;
  /** Another number is another teacher: another output matrix. Default 3. */
  readonly matrixSeed?: number;
  /** Other rows and states of the same teacher; left out: those of always. */
  readonly rowSeed?: number;
  /** RMS of each channel for int8. Default 3. */
  readonly channelRms?: number;
  /** Step of `coded` states. Default 0.02. */
  readonly step?: number;
}

/**
 * Writes a cache of random rows whose labels all come from one distribution: final hidden states and output matrix are
 * random, as are the states of other layers, and the top-k labels are computed from their product in float64. Hidden
 * states are float32, int8 or coded; sampled labels are as near to the distribution as their number of draws allows.
 */
export async function writeSyntheticCache(
  folder: string,
  teacher: SyntheticTeacher,
  changes: Partial<CacheDescription> = {},
): Promise<void> {
  const { vocabSize, hiddenSize, rows, k, temperatures, matrixSeed = 3, rowSeed } = teacher;
  const matrixNormal = randomNormals(matrixSeed);
  const matrix = Float32Array.from({ length: vocabSize * hiddenSize }, () => matrixNormal() / Math.sqrt(hiddenSize));
  const normal = rowSeed === undefined ? matrixNormal : randomNormals(rowSeed);
  const [uniform, layerNormal] = [randomUniforms(rowSeed ?? 4), randomNormals(5)];
  const description: CacheDescription = {
    teacher: {
      kind: 'weights',
      name: 'synthetic',
      architecture: 'none',
      weightsSha256: String(matrixSeed - 3).padStart(64, '0'),
      configSha256: '0'.repeat(64),
      hiddenSize,
      layerCount: teacher.layerCount ?? 1,
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
  const { topk, sampled = null, hidden: hiddenPolicy } = description.labels;
  const codebook = hiddenPolicy?.dtype === 'coded' ? makeCodebook(hiddenSize, teacher.step ?? 0.02) : undefined;
  let channelRms: Float32Array | undefined;
  const makeRow = (index: number): LabelledRow => {
    const length = teacher.rowTokens ?? 4 + Math.floor(uniform() * 8);
    const inputIds = Int32Array.from({ length }, () => Math.floor(uniform() * vocabSize));
    const lossMask = Uint8Array.from({ length }, (_, t) => (t < 2 ? 0 : 1));
    const positions = labelPositions(lossMask, 'response');
    const values = Float32Array.from({ length: positions.length * hiddenSize }, () => 3 * normal());
    const statesOf = (layer: HiddenLayer) =>
      layer === 'final' ? values : Float32Array.from({ length: values.length }, () => layerNormal());
    const hidden = (hiddenPolicy?.layers ?? []).map((layer): readonly [HiddenLayer, HiddenLabels] => {
      const states = statesOf(layer);
      if (codebook !== undefined) {
        return [layer, { layer, dtype: 'coded', width: codebook.rank, values: encodeStates(states, codebook) }];
      }
      return [
        layer,
        channelRms === undefined
          ? { layer, dtype: 'float32', width: hiddenSize, values: states }
          : quantiseHidden(layer, states, channelRms),
      ];
    });
    return {
      row: {
        id: `row-${index}`,
        inputIds,
        lossMask,
        task: index % 3 === 0 ? 'math' : 'code',
        split: index % 4 === 3 ? 'test' : 'train',
      },
      positions,
      ...(topk === null ? {} : { topk: exactTopK(values, matrix, teacher) }),
      ...(sampled === null ? {} : { sampled: proportionalDraws(values, matrix, teacher, sampled) }),
      ...(hiddenPolicy === null ? {} : { hidden: new Map(hidden) }),
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
    if (hiddenPolicy?.dtype === 'int8') {
      channelRms = new Float32Array(hiddenSize).fill(teacher.channelRms ?? 3);
      for (const layer of hiddenPolicy.layers) await writer.setScale(layer, channelRms);
    }
    if (codebook !== undefined) for (const layer of hiddenPolicy!.layers) await writer.setScale(layer, codebook);
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

/** Codes are the states themselves in steps. */
function makeCodebook(width: number, step: number): HiddenCodebook {
  const diagonal = (value: number) =>
    Float32Array.from({ length: width * width }, (_, i) => (i % (width + 1) === 0 ? value : 0));
  const sample = Int16Array.from({ length: 50 * width }, (_, i) => Math.round((9 * Math.sin(i * 1.3)) / step));
  return {
    width,
    rank: width,
    mean: new Float32Array(width),
    encode: diagonal(1 / step),
    decode: diagonal(step),
    coder: fitCoordinateCoder(sample, width),
  };
}

/** log p at T = 1 of position `p`, [vocabSize]. */
function logprobsAt(
  hidden: Float32Array,
  matrix: Float32Array,
  { vocabSize, hiddenSize }: SyntheticTeacher,
  p: number,
): Float64Array {
  const logits = Float64Array.from({ length: vocabSize }, (_, v) => {
    let sum = 0;
    for (let i = 0; i < hiddenSize; i++) sum += hidden[p * hiddenSize + i]! * matrix[v * hiddenSize + i]!;
    return sum;
  });
  const normaliser = logSumExp(logits);
  return logits.map((logit) => logit - normaliser);
}

const logSumExp = (values: Float64Array) => Math.log(values.reduce((sum, value) => sum + Math.exp(value), 0));

function proportionalDraws(
  hidden: Float32Array,
  matrix: Float32Array,
  teacher: SyntheticTeacher,
  { draws, temperature }: NonNullable<CacheDescription['labels']['sampled']>,
): SampledLabels {
  const positions = Array.from({ length: hidden.length / teacher.hiddenSize }, (_, p) => {
    const tempered = logprobsAt(hidden, matrix, teacher, p).map((value) => value / temperature);
    const normaliser = logSumExp(tempered);
    const shares = tempered.map((value) => draws * Math.exp(value - normaliser));
    const counts = shares.map(Math.floor);
    const byRest = [...shares.keys()].sort((a, b) => shares[b]! - counts[b]! - (shares[a]! - counts[a]!));
    const left = draws - counts.reduce((sum, count) => sum + count, 0);
    for (const id of byRest.slice(0, left)) counts[id]! += 1;
    return [...counts.entries()].filter(([, count]) => count > 0);
  });
  return {
    counts: Int32Array.from(positions, (entries) => entries.length),
    ids: Int32Array.from(positions.flat(), ([id]) => id),
    draws: Uint16Array.from(positions.flat(), ([, count]) => count),
  };
}

function exactTopK(hidden: Float32Array, matrix: Float32Array, teacher: SyntheticTeacher): TopKLabels {
  const { hiddenSize, k, temperatures } = teacher;
  const positions = hidden.length / hiddenSize;
  const ids = new Int32Array(positions * k);
  const logprobs = new Float32Array(positions * k);
  const logZ = new Float32Array(positions * temperatures.length);
  for (let p = 0; p < positions; p++) {
    const logp = logprobsAt(hidden, matrix, teacher, p);
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
