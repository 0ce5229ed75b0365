import { narrowToFloat16 } from '@stillhouse/float-formats';
import { randomUniforms } from '@stillhouse/testing';
import {
  type CacheDescription,
  type CachedRow,
  type CacheWriter,
  fitCoordinateCoder,
  type HiddenCodebook,
  type HiddenDtype,
  type HiddenLabels,
  type HiddenLayer,
  type LabelledRow,
  labelPositions,
  openCacheWriter,
  quantiseHidden,
  quantiseHiddenGroups,
  roundTopK,
  type SampledLabels,
  type SampledPolicy,
  type TopKLabels,
  type TopKPolicy,
  targetsOf,
} from '../index.ts';

export interface RandomCacheShape {
  readonly seed: number;
  readonly rows: number;
  readonly rowsPerShard: number;
  readonly maxTokens: number;
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly k: number;
  readonly temperatures?: readonly number[];
  readonly layers?: readonly HiddenLayer[];
  readonly dtype?: HiddenDtype;
  readonly positions?: 'response' | 'all';
  /** More of the top-k policy. */
  readonly topk?: Partial<TopKPolicy>;
  readonly sampled?: SampledPolicy;
}

export function describeRandomCache(shape: RandomCacheShape): CacheDescription {
  const { vocabSize, hiddenSize, layers = ['final', 2], dtype = 'int8' } = shape;
  return {
    teacher: {
      kind: 'weights',
      name: 'random',
      architecture: 'qwen2',
      weightsSha256: 'a'.repeat(64),
      configSha256: 'b'.repeat(64),
      hiddenSize,
      layerCount: 4,
      vocabSize,
    },
    tokenizer: { digest: 'c'.repeat(64), realVocabSize: vocabSize, chatTemplateSha256: null },
    data: { sha256: 'd'.repeat(64), name: 'random.jsonl', rowCount: shape.rows },
    maxLength: null,
    limit: null,
    labels: {
      topk: { k: shape.k, temperatures: shape.temperatures ?? [1, 2, 4], ...shape.topk },
      ...(shape.sampled === undefined ? {} : { sampled: shape.sampled }),
      hidden: { layers, dtype, ...(dtype === 'coded' ? { codedBytes: 4 } : {}) },
      head: true,
    },
    positions: shape.positions ?? 'response',
    rowsPerShard: shape.rowsPerShard,
    generator: { name: 'stillhouse', version: '0.1.0' },
  };
}

/**
 * Labels of made-up distributions over the vocabulary: a random number of the most probable ids or as many as the
 * policy asks for, and those it keeps anyway, as readers will see them.
 */
export function randomTopK(random: () => number, targets: Int32Array, description: CacheDescription): TopKLabels {
  const { k, temperatures, topP, minK, pinnedIds = [], keepTarget, packing, logprobDtype } = description.labels.topk!;
  const { vocabSize } = description.teacher!;
  const counts: number[] = [];
  const ids: number[] = [];
  const logprobs: number[] = [];
  const logZ: number[] = [];
  for (const target of targets) {
    const sharpness = 6 + 20 * random() ** 4;
    const logits = Float64Array.from({ length: vocabSize }, () => sharpness * random());
    const norm = Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit), 0));
    const all = Array.from(logits, (logit, id) => ({ id, logprob: logit - norm }));
    const sorted = [...all].sort((a, b) => b.logprob - a.logprob);
    let ranked = 1 + Math.floor(random() * k);
    if (topP !== undefined) {
      let mass = 0;
      for (ranked = 0; ranked < k && (ranked < minK! || mass < topP); ranked++)
        mass += Math.exp(sorted[ranked]!.logprob);
    }
    const kept = sorted.filter(
      ({ id }, rank) => rank < ranked || pinnedIds.includes(id) || (keepTarget === true && id === target),
    );
    counts.push(kept.length);
    for (const { id, logprob } of kept) {
      ids.push(id);
      logprobs.push(logprob);
    }
    for (const t of temperatures) logZ.push(Math.log(all.reduce((sum, { logprob }) => sum + Math.exp(logprob / t), 0)));
  }
  const labels = {
    counts: Int32Array.from(counts),
    ids: Int32Array.from(ids),
    logprobs: Float32Array.from(logprobs),
    logZ: Float32Array.from(logZ),
  };
  return packing === 'zstd' ? roundTopK(labels, logprobDtype ?? 'float32') : labels;
}

/** Draws of which each position favours some ids. */
export function randomSampled(random: () => number, positions: number, description: CacheDescription): SampledLabels {
  const { draws: wanted } = description.labels.sampled!;
  const { vocabSize } = description.teacher!;
  const counted = Array.from({ length: positions }, () => {
    const byId = new Map<number, number>();
    for (let draw = 0; draw < wanted; draw++) {
      const id = vocabSize - 1 - Math.floor(random() ** 3 * vocabSize);
      byId.set(id, (byId.get(id) ?? 0) + 1);
    }
    return [...byId];
  });
  return {
    counts: Int32Array.from(counted, (entries) => entries.length),
    ids: Int32Array.from(counted.flatMap((entries) => entries.map(([id]) => id))),
    draws: Uint16Array.from(counted.flatMap((entries) => entries.map(([, draws]) => draws))),
  };
}

/** The codebook of random coded states; its coder was fitted to other codes than it will meet. */
export function fixedCodebook(width: number): HiddenCodebook {
  const rank = Math.ceil(width / 2);
  const matrix = (length: number) => Float32Array.from({ length }, (_, i) => ((i * 37) % 11) - 5);
  return {
    width,
    rank,
    mean: matrix(width),
    encode: matrix(width * rank),
    decode: matrix(rank * width),
    coder: fitCoordinateCoder(
      Int16Array.from({ length: 20 * rank }, (_, i) => ((i * 7) % 5) - 2),
      rank,
    ),
  };
}

/** The RMS by which random int8 states are scaled. */
export const fixedChannelRms = (width: number) => Float32Array.from({ length: width }, (_, i) => 0.5 + (i % 7) / 3);

export function randomHidden(
  random: () => number,
  positions: number,
  layer: HiddenLayer,
  description: CacheDescription,
): HiddenLabels {
  const width = description.teacher!.hiddenSize!;
  const { dtype } = description.labels.hidden!;
  const states = Float32Array.from({ length: positions * width }, () => 8 * (random() - 0.5));
  if (dtype === 'int8') return quantiseHidden(layer, states, fixedChannelRms(width));
  if (dtype === 'int8-groups') return quantiseHiddenGroups(layer, states, width);
  if (dtype === 'coded') {
    const { rank } = fixedCodebook(width);
    const values = Int16Array.from({ length: positions * rank }, () => Math.round(1 / (random() - 0.5)));
    return { layer, dtype, width: rank, values };
  }
  return { layer, dtype, width, values: dtype === 'float16' ? narrowToFloat16(states) : states };
}

const METADATA = ['task', 'split', 'source', 'answer'] as const;

/** Row `index` of a random cache: the same for the same shape, whatever was made before. */
export function randomRow(shape: RandomCacheShape, index: number, description: CacheDescription): LabelledRow {
  const random = randomUniforms(shape.seed * 1_000_003 + index);
  const length = 1 + Math.floor(random() * shape.maxTokens);
  const promptLength = 1 + Math.floor(random() * length);
  const row: CachedRow = {
    id: `row ${index} ä`,
    inputIds: Int32Array.from({ length }, () => Math.floor(random() * shape.vocabSize)),
    lossMask: Uint8Array.from({ length }, (_, i) => (i >= promptLength ? 1 : 0)),
    ...Object.fromEntries(METADATA.filter(() => random() < 0.5).map((name) => [name, `${name} of ${index}`])),
  };
  const positions = labelPositions(row.lossMask, description.positions);
  const { topk, sampled = null, hidden } = description.labels;
  return {
    row,
    positions,
    ...(topk === null ? {} : { topk: randomTopK(random, targetsOf(row, positions), description) }),
    ...(sampled === null ? {} : { sampled: randomSampled(random, positions.length, description) }),
    ...(hidden === null
      ? {}
      : {
          hidden: new Map(
            hidden.layers.map((layer) => [layer, randomHidden(random, positions.length, layer, description)]),
          ),
        }),
  };
}

export const TOKENIZER_FILES = [
  { name: 'tokenizer.json', bytes: Buffer.from('{"model":{}}') },
  { name: 'chat_template.jinja', bytes: Buffer.from('{{ messages }}') },
];

/** Everything but the shards; does nothing that a resumed cache has already. */
export async function prepareRandomCache(writer: CacheWriter): Promise<void> {
  const { description } = writer;
  const { hiddenSize = 0, vocabSize } = description.teacher!;
  await writer.putTokenizerFiles(TOKENIZER_FILES);
  if (!description.labels.head) return;
  const bytes = new Uint8Array(Uint16Array.from({ length: vocabSize * hiddenSize }, (_, i) => i % 0x7f80).buffer);
  const cut = Math.ceil(bytes.length / 3);
  const chunks = [bytes.subarray(0, cut), bytes.subarray(cut, 2 * cut), bytes.subarray(2 * cut)];
  await writer.putOutputMatrix({ dtype: 'bfloat16', rows: vocabSize, columns: hiddenSize, chunks });
  const { hidden } = description.labels;
  const scale = { int8: fixedChannelRms, coded: fixedCodebook }[hidden?.dtype as 'int8' | 'coded'];
  if (scale === undefined) return;
  for (const layer of hidden!.layers) await writer.setScale(layer, scale(hiddenSize));
}

/** Builds a random cache, or goes on with one. */
export async function buildRandomCache(
  folder: string,
  shape: RandomCacheShape,
  described = describeRandomCache(shape),
): Promise<CacheDescription> {
  const writer = await openCacheWriter(folder, described, { totalRows: shape.rows });
  const { description } = writer;
  try {
    await prepareRandomCache(writer);
    for (let index = writer.completedShards; index < writer.shardCount; index++) {
      const [first, end] = writer.shardRange(index);
      await writer.writeShard(
        index,
        Array.from({ length: end - first }, (_, i) => randomRow(shape, first + i, description)),
      );
    }
    await writer.finish();
    return description;
  } finally {
    await writer.close();
  }
}
