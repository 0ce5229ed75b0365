import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  type CacheDescription,
  type HiddenLayer,
  type LabelledRow,
  labelPositions,
  openCacheWriter,
  quantiseHidden,
} from '@stillhouse/teacher-cache';
import { randomUniforms } from '@stillhouse/testing';

export interface RandomCacheShape {
  readonly rows: number;
  readonly rowsPerShard: number;
  readonly maxTokens: number;
  readonly vocabSize: number;
  readonly k: number;
  /** Positions have fewer entries than k. Default true. */
  readonly ragged?: boolean;
  readonly temperatures?: readonly number[];
  readonly layers?: readonly HiddenLayer[];
  readonly positions?: 'response' | 'all';
  readonly hiddenSize?: number;
  /** The split of the rows that have the first of the splits. Default train. */
  readonly firstSplit?: string;
}

export const SHAPE: RandomCacheShape = { rows: 7, rowsPerShard: 3, maxTokens: 10, vocabSize: 20, k: 4 };

/** The RMS by which the int8 states are scaled. */
export const channelRms = (width: number) => Float32Array.from({ length: width }, (_, i) => 0.5 + (i % 7) / 3);

function describe(shape: RandomCacheShape): CacheDescription {
  const { vocabSize, layers = ['final', 2], temperatures = [1, 2, 4], hiddenSize = 5 } = shape;
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
      topk: { k: shape.k, temperatures },
      hidden: layers.length === 0 ? null : { layers, dtype: 'int8' },
      head: false,
    },
    positions: shape.positions ?? 'response',
    rowsPerShard: shape.rowsPerShard,
    generator: { name: 'stillhouse', version: '0.1.0' },
  };
}

/** Row `index`: a prompt, then turns of which some are targets; the same for the same shape. */
export function randomRow(shape: RandomCacheShape, index: number): LabelledRow {
  const random = randomUniforms(1_000_003 + index);
  const { vocabSize, k, ragged = true } = shape;
  const description = describe(shape);
  const length = 1 + Math.floor(random() * shape.maxTokens);
  const prompt = 1 + Math.floor((random() * length) / 2);
  const inputIds = Int32Array.from({ length }, () => Math.floor(random() * vocabSize));
  const lossMask = Uint8Array.from({ length }, (_, i) => (i >= prompt && random() < 0.8 ? 1 : 0));
  const positions = labelPositions(lossMask, description.positions);
  const { temperatures } = description.labels.topk!;
  const [counts, ids, logprobs, logZ]: number[][] = [[], [], [], []];
  for (let place = 0; place < positions.length; place++) {
    const sharpness = 2 + 14 * random() ** 2;
    const logits = Float64Array.from({ length: vocabSize }, () => sharpness * random());
    const norm = Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit), 0));
    const sorted = Array.from(logits, (logit, id) => ({ id, logprob: logit - norm })).sort(
      (a, b) => b.logprob - a.logprob,
    );
    const kept = sorted.slice(0, ragged ? 1 + Math.floor(random() * k) : k);
    counts!.push(kept.length);
    for (const { id, logprob } of kept) {
      ids!.push(id);
      logprobs!.push(logprob);
    }
    for (const t of temperatures)
      logZ!.push(Math.log(sorted.reduce((sum, { logprob }) => sum + Math.exp(logprob / t), 0)));
  }
  const topk = {
    counts: Int32Array.from(counts!),
    ids: Int32Array.from(ids!),
    logprobs: Float32Array.from(logprobs!),
    logZ: Float32Array.from(logZ!),
  };
  const width = description.teacher!.hiddenSize!;
  const layers = description.labels.hidden?.layers ?? [];
  const states = () => Float32Array.from({ length: positions.length * width }, () => 8 * (random() - 0.5));
  const split = [shape.firstSplit ?? 'train', 'test', undefined][index % 3];
  return {
    row: {
      id: `row ${index} ä`,
      inputIds,
      lossMask,
      ...(split === undefined ? {} : { split }),
      ...(index % 2 === 0 ? { task: 'math', source: 'here' } : { answer: `${index}` }),
    },
    positions,
    topk,
    ...(layers.length === 0
      ? {}
      : { hidden: new Map(layers.map((layer) => [layer, quantiseHidden(layer, states(), channelRms(width))])) }),
  };
}

export async function buildRandomCache(folder: string, shape: RandomCacheShape): Promise<void> {
  const description = describe(shape);
  const writer = await openCacheWriter(folder, description, { totalRows: shape.rows });
  try {
    await writer.putTokenizerFiles([{ name: 'tokenizer.json', bytes: Buffer.from('{"model":{}}') }]);
    const { hidden } = description.labels;
    for (const layer of hidden?.layers ?? [])
      await writer.setScale(layer, channelRms(description.teacher!.hiddenSize!));
    for (let index = 0; index < writer.shardCount; index++) {
      const [first, end] = writer.shardRange(index);
      await writer.writeShard(
        index,
        Array.from({ length: end - first }, (_, i) => randomRow(shape, first + i)),
      );
    }
    await writer.finish();
  } finally {
    await writer.close();
  }
}

/** Hands an empty folder to `work` and removes it afterwards. */
export async function inFolder<T>(work: (folder: string) => Promise<T>): Promise<T> {
  const folder = await mkdtemp(join(tmpdir(), 'cache-exchange-'));
  try {
    return await work(folder);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
