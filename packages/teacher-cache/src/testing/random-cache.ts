import { narrowToFloat16 } from '@stillhouse/float-formats';
import {
  type CacheDescription,
  type CachedRow,
  type CacheWriter,
  type HiddenDtype,
  type HiddenLabels,
  type HiddenLayer,
  type LabelledRow,
  labelPositions,
  openCacheWriter,
  quantiseHidden,
  type TopKLabels,
} from '../index.ts';

/** Numbers in [0, 1) that depend on the seed alone (mulberry32). */
export function seededRandom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let word = Math.imul(state ^ (state >>> 15), state | 1);
    word ^= word + Math.imul(word ^ (word >>> 7), word | 61);
    return ((word ^ (word >>> 14)) >>> 0) / 2 ** 32;
  };
}

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
}

export function describeRandomCache(shape: RandomCacheShape): CacheDescription {
  const { vocabSize, hiddenSize, layers = ['final', 2], dtype = 'int8' } = shape;
  return {
    teacher: {
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
      topk: { k: shape.k, temperatures: shape.temperatures ?? [1, 2, 4] },
      hidden: { layers, dtype },
      head: true,
    },
    positions: shape.positions ?? 'response',
    rowsPerShard: shape.rowsPerShard,
    generator: { name: 'stillhouse', version: '0.1.0' },
  };
}

/** Exact labels of a made-up distribution over the vocabulary, of which a random number of ids is kept. */
export function randomTopK(random: () => number, positions: number, description: CacheDescription): TopKLabels {
  const { k, temperatures } = description.labels.topk!;
  const { vocabSize } = description.teacher!;
  const counts: number[] = [];
  const ids: number[] = [];
  const logprobs: number[] = [];
  const logZ: number[] = [];
  for (let position = 0; position < positions; position++) {
    const logits = Float64Array.from({ length: vocabSize }, () => 6 * random());
    const norm = Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit), 0));
    const all = Array.from(logits, (logit, id) => ({ id, logprob: logit - norm }));
    const count = 1 + Math.floor(random() * k);
    counts.push(count);
    for (const { id, logprob } of [...all].sort((a, b) => b.logprob - a.logprob).slice(0, count)) {
      ids.push(id);
      logprobs.push(logprob);
    }
    for (const t of temperatures) logZ.push(Math.log(all.reduce((sum, { logprob }) => sum + Math.exp(logprob / t), 0)));
  }
  return {
    counts: Int32Array.from(counts),
    ids: Int32Array.from(ids),
    logprobs: Float32Array.from(logprobs),
    logZ: Float32Array.from(logZ),
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
  const width = description.teacher!.hiddenSize;
  const { dtype } = description.labels.hidden!;
  const states = Float32Array.from({ length: positions * width }, () => 8 * (random() - 0.5));
  if (dtype === 'int8') return quantiseHidden(layer, states, fixedChannelRms(width));
  return { layer, dtype, width, values: dtype === 'float16' ? narrowToFloat16(states) : states };
}

const METADATA = ['task', 'split', 'source', 'answer'] as const;

/** Row `index` of a random cache: the same for the same shape, whatever was made before. */
export function randomRow(shape: RandomCacheShape, index: number, description: CacheDescription): LabelledRow {
  const random = seededRandom(shape.seed * 1_000_003 + index);
  const length = 1 + Math.floor(random() * shape.maxTokens);
  const promptLength = 1 + Math.floor(random() * length);
  const row: CachedRow = {
    id: `row ${index} ä`,
    inputIds: Int32Array.from({ length }, () => Math.floor(random() * shape.vocabSize)),
    lossMask: Uint8Array.from({ length }, (_, i) => (i >= promptLength ? 1 : 0)),
    ...Object.fromEntries(METADATA.filter(() => random() < 0.5).map((name) => [name, `${name} of ${index}`])),
  };
  const positions = labelPositions(row.lossMask, description.positions);
  const { topk, hidden } = description.labels;
  return {
    row,
    positions,
    ...(topk === null ? {} : { topk: randomTopK(random, positions.length, description) }),
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
  const { hiddenSize, vocabSize } = description.teacher!;
  await writer.putTokenizerFiles(TOKENIZER_FILES);
  const bytes = new Uint8Array(Uint16Array.from({ length: vocabSize * hiddenSize }, (_, i) => i % 0x7f80).buffer);
  const cut = Math.ceil(bytes.length / 3);
  const chunks = [bytes.subarray(0, cut), bytes.subarray(cut, 2 * cut), bytes.subarray(2 * cut)];
  await writer.putOutputMatrix({ dtype: 'bfloat16', rows: vocabSize, columns: hiddenSize, chunks });
  for (const layer of description.labels.hidden?.dtype === 'int8' ? description.labels.hidden.layers : []) {
    await writer.setChannelRms(layer, fixedChannelRms(hiddenSize));
  }
}

/** Builds a random cache, or goes on with one. */
export async function buildRandomCache(folder: string, shape: RandomCacheShape): Promise<CacheDescription> {
  const writer = await openCacheWriter(folder, describeRandomCache(shape), { totalRows: shape.rows });
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
