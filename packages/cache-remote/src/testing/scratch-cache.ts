import { type CacheDescription, type LabelledRow, labelPositions, openCacheWriter } from '@stillhouse/teacher-cache';

export interface ScratchShape {
  readonly rows?: number;
  readonly rowsPerShard?: number;
  /** Tokens of every row; two of them are prompt. */
  readonly tokens?: number;
  readonly hiddenSize?: number;
  /** Other labels, same rows. */
  readonly seed?: number;
  readonly hidden?: boolean;
}

const VOCABULARY = 32;

/** Builds a small complete cache: rows, top-k, final hidden states as float32, output matrix, tokenizer. */
export async function buildScratchCache(folder: string, shape: ScratchShape = {}): Promise<void> {
  const { rows = 6, rowsPerShard = 2, tokens = 12, hiddenSize = 8, seed = 1, hidden = true } = shape;
  const description: CacheDescription = {
    teacher: {
      kind: 'weights',
      name: `teacher-${seed}`,
      architecture: 'qwen2',
      weightsSha256: seed.toString(16).padStart(64, '0'),
      configSha256: 'b'.repeat(64),
      hiddenSize,
      layerCount: 2,
      vocabSize: VOCABULARY,
    },
    tokenizer: { digest: 'c'.repeat(64), realVocabSize: VOCABULARY, chatTemplateSha256: null },
    data: { sha256: 'd'.repeat(64), name: 'scratch.jsonl', rowCount: rows },
    maxLength: null,
    limit: null,
    labels: {
      topk: { k: 2, temperatures: [1] },
      hidden: hidden ? { layers: ['final'], dtype: 'float32' } : null,
      head: hidden,
    },
    positions: 'response',
    rowsPerShard,
    generator: { name: 'stillhouse', version: '0.1.0' },
  };
  const writer = await openCacheWriter(folder, description, { totalRows: rows });
  try {
    await writer.putTokenizerFiles([{ name: 'tokenizer.json', bytes: Buffer.from('{"model":{}}') }]);
    if (hidden) {
      const bytes = Buffer.alloc(VOCABULARY * hiddenSize * 4);
      for (let i = 0; i < VOCABULARY * hiddenSize; i++) bytes.writeFloatLE((i % 7) + seed, i * 4);
      await writer.putOutputMatrix({ dtype: 'float32', rows: VOCABULARY, columns: hiddenSize, chunks: [bytes] });
    }
    const shards = Math.ceil(rows / rowsPerShard);
    for (let shard = 0; shard < shards; shard++) {
      const first = shard * rowsPerShard;
      const count = Math.min(rowsPerShard, rows - first);
      const made = Array.from({ length: count }, (_, i) => makeRow(first + i, tokens, hiddenSize, seed, hidden));
      await writer.writeShard(shard, made);
    }
    await writer.finish();
  } finally {
    await writer.close();
  }
}

function makeRow(index: number, tokens: number, hiddenSize: number, seed: number, hidden: boolean): LabelledRow {
  const lossMask = Uint8Array.from({ length: tokens }, (_, i) => (i >= 2 ? 1 : 0));
  const positions = labelPositions(lossMask, 'response');
  const count = positions.length;
  // Two ids hold 0.75 and 0.125 of the mass; another seed swaps where.
  const logprobs = Float32Array.from({ length: 2 * count }, (_, i) => Math.log(i % 2 === 0 ? 0.75 : 0.125));
  let state = (index + 1) * 7919 + seed;
  const next = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32 - 0.5;
  };
  return {
    row: {
      id: `row-${index}`,
      inputIds: Int32Array.from({ length: tokens }, (_, i) => (index * 5 + i * 3) % VOCABULARY),
      lossMask,
    },
    positions,
    topk: {
      counts: new Int32Array(count).fill(2),
      ids: Int32Array.from({ length: 2 * count }, (_, i) => (i + seed * (i % 2)) % VOCABULARY),
      logprobs,
      logZ: new Float32Array(count),
    },
    ...(hidden
      ? {
          hidden: new Map([
            [
              'final' as const,
              {
                layer: 'final' as const,
                dtype: 'float32' as const,
                width: hiddenSize,
                values: Float32Array.from({ length: count * hiddenSize }, next),
              },
            ],
          ]),
        }
      : {}),
  };
}
