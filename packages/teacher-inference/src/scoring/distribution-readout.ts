import type { ModelConfig } from '@stillhouse/checkpoint';
import type { DeviceTensor, Engine, Program } from '@stillhouse/runtime';
import { openUniformNumbers } from '@stillhouse/seeded-random';
import type { CacheDescription, SampledLabels, SampledPolicy, TopKLabels, TopKPolicy } from '@stillhouse/teacher-cache';
import { BLOCK_IDS, blocksGraph, countBlocks, distributionGraph } from './distribution-graph.ts';
import { countDraws, drawBlocks } from './id-sampling.ts';
import { type LabelRange, requireFinite } from './label-range.ts';
import { selectTopK, type TopKCandidates } from './topk-selection.ts';

/** Labels that come from the logits, of one row. */
export interface DistributionLabels {
  readonly topk?: TopKLabels;
  readonly sampled?: SampledLabels;
}

/**
 * Reads distributions off final states; only what a cache stores, and for draws some blocks of weights, leave the
 * device.
 * @param states [positions, hiddenSize] after the final norm
 * @param head [vocabSize, hiddenSize]
 * @returns the labels of each range
 * @throws StillhouseError TEACHER_OUTPUT_NOT_FINITE
 */
export type DistributionReadout = (
  states: DeviceTensor,
  head: DeviceTensor,
  ranges: readonly LabelRange[],
  onChunk: (positions: number) => void,
) => Promise<readonly DistributionLabels[]>;

/** What the logits of one chunk of positions take; three to five arrays of this size are there at a time. */
const LOGITS_BYTES = 80 << 20;
/** Most positions of a chunk, where they are narrow. */
const LONGEST_CHUNK = 1024;

/** The positions [start, end) of a pass. */
interface Chunk {
  readonly start: number;
  readonly end: number;
}

/** One kind of labels: its outputs on the device, and what becomes of them. */
interface OutputReader<Labels> {
  /** Inputs and outputs of the graph for a chunk. */
  bind(chunk: Chunk): { readonly inputs: Record<string, DeviceTensor>; readonly outputs: Record<string, DeviceTensor> };
  /** Called after each chunk was computed. */
  take(chunk: Chunk): Promise<void>;
  finish(): Promise<readonly Labels[]>;
  close(): void;
}

/** Compiles the readout of top-k and sampled labels; undefined where a cache has neither. */
export async function createDistributionReadout(
  engine: Engine,
  config: ModelConfig,
  { topk, sampled = null }: CacheDescription['labels'],
): Promise<DistributionReadout | undefined> {
  if (topk === null && sampled === null) return undefined;
  const { vocabSize } = config;
  const keptIds = topk === null ? 0 : countKeptIds(topk);
  const graph = distributionGraph(config, { topk: topk && { ...topk, keptIds }, sampled });
  const program = await engine.compile(graph);
  const blocks = sampled && (await engine.compile(blocksGraph()));
  const chunkSize = Math.max(1, Math.min(LONGEST_CHUNK, Math.floor(LOGITS_BYTES / (4 * vocabSize))));

  return async (states, head, ranges, onChunk) => {
    const total = states.shape[0]!;
    const ownTopK = topk && openTopKReader(engine, topk, { vocabSize, total, ranges });
    const ownSampled = sampled && openSampledReader(engine, blocks!, sampled, { vocabSize, chunkSize, ranges });
    const readers = [ownTopK, ownSampled].filter((reader) => reader !== null);
    try {
      for (let start = 0; start < total; start += chunkSize) {
        const chunk = { start, end: Math.min(total, start + chunkSize) };
        const x = viewRows(engine, states, chunk);
        const bound = readers.map((reader) => reader.bind(chunk));
        const inputs = Object.assign({ x, head }, ...bound.map((one) => one.inputs));
        const outputs = Object.assign({}, ...bound.map((one) => one.outputs));
        await engine.run([{ kind: 'run', program, inputs, outputs }]);
        engine.free(x);
        for (const reader of readers) await reader.take(chunk);
        onChunk(chunk.end - chunk.start);
      }
      const [topkLabels, sampledLabels] = [await ownTopK?.finish(), await ownSampled?.finish()];
      return ranges.map((_, i) => ({
        ...(topkLabels === undefined ? {} : { topk: topkLabels[i]! }),
        ...(sampledLabels === undefined ? {} : { sampled: sampledLabels[i]! }),
      }));
    } finally {
      for (const reader of readers) reader.close();
    }
  };
}

const countKeptIds = ({ pinnedIds = [], keepTarget = false }: TopKPolicy) => pinnedIds.length + (keepTarget ? 1 : 0);

/** Rows [start, end) of a matrix. */
const viewRows = (engine: Engine, matrix: DeviceTensor, { start, end }: Chunk): DeviceTensor =>
  engine.view(matrix, { offset: start * matrix.shape[1]!, shape: [end - start, matrix.shape[1]!] });

function openTopKReader(
  engine: Engine,
  policy: TopKPolicy,
  {
    vocabSize,
    total,
    ranges,
  }: { readonly vocabSize: number; readonly total: number; readonly ranges: readonly LabelRange[] },
): OutputReader<TopKLabels> {
  const { k, temperatures } = policy;
  const kept = countKeptIds(policy);
  const keptIds = listKeptIds(policy, kept, total, ranges);
  const outputs: Record<string, DeviceTensor> = {
    ids: engine.allocate('int32', [total, k]),
    logprobs: engine.allocate('float32', [total, k]),
    logZ: engine.allocate('float32', [total, temperatures.length]),
    ...(kept === 0 ? {} : { keptLogprobs: engine.allocate('float32', [total, kept]) }),
  };
  const inputs: Record<string, DeviceTensor> =
    kept === 0 ? {} : { keptIds: engine.upload(keptIds, 'int64', [total, kept]) };
  const cut = (tensors: Record<string, DeviceTensor>, chunk: Chunk) =>
    Object.fromEntries(Object.entries(tensors).map(([name, tensor]) => [name, viewRows(engine, tensor, chunk)]));
  return {
    bind: (chunk) => ({ inputs: cut(inputs, chunk), outputs: cut(outputs, chunk) }),
    take: async () => {},
    finish: async () => {
      const names = Object.keys(outputs);
      const downloaded = await engine.downloadMany(names.map((name) => outputs[name]!));
      const values = Object.fromEntries(names.map((name, i) => [name, downloaded[i]!]));
      const logZ = values.logZ as Float32Array;
      // A logit that is not finite spoils the sum over all of them.
      requireFinite(logZ, temperatures.length, 'logits', ranges);
      const candidates: TopKCandidates = {
        ids: values.ids as Int32Array,
        logprobs: values.logprobs as Float32Array,
        keptIds,
        keptLogprobs: (values.keptLogprobs ?? new Float32Array(0)) as Float32Array,
        logZ,
      };
      return ranges.map((range) => selectTopK(cutCandidates(candidates, range, policy, kept), policy, vocabSize));
    },
    close: () => {
      for (const tensor of [...Object.values(inputs), ...Object.values(outputs)]) engine.free(tensor);
    },
  };
}

/** [total, kept] pinned ids and the target of each position. */
function listKeptIds(
  { pinnedIds = [], keepTarget = false }: TopKPolicy,
  kept: number,
  total: number,
  ranges: readonly LabelRange[],
): BigInt64Array<ArrayBuffer> {
  const ids = new BigInt64Array(total * kept);
  const pinned = pinnedIds.map(BigInt);
  for (const { start, targets } of ranges) {
    for (const [i, target] of targets.entries()) {
      ids.set(pinned, (start + i) * kept);
      if (keepTarget) ids[(start + i + 1) * kept - 1] = BigInt(target);
    }
  }
  return ids;
}

function cutCandidates(
  { ids, logprobs, keptIds, keptLogprobs, logZ }: TopKCandidates,
  { start, end }: Chunk,
  { k, temperatures }: TopKPolicy,
  kept: number,
): TopKCandidates {
  return {
    ids: ids.subarray(start * k, end * k),
    logprobs: logprobs.subarray(start * k, end * k),
    keptIds: keptIds.subarray(start * kept, end * kept),
    keptLogprobs: keptLogprobs.subarray(start * kept, end * kept),
    logZ: logZ.subarray(start * temperatures.length, end * temperatures.length),
  };
}

function openSampledReader(
  engine: Engine,
  gatherBlocks: Program,
  { draws, seed = 0 }: SampledPolicy,
  {
    vocabSize,
    chunkSize,
    ranges,
  }: { readonly vocabSize: number; readonly chunkSize: number; readonly ranges: readonly LabelRange[] },
): OutputReader<SampledLabels> {
  const blockCount = countBlocks(vocabSize);
  const weights = engine.allocate('float32', [chunkSize, blockCount * BLOCK_IDS]);
  const blockSums = engine.allocate('float32', [chunkSize, blockCount]);
  const parts: SampledLabels[] = [];
  const fromStart = ({ start, end }: Chunk): Chunk => ({ start: 0, end: end - start });
  return {
    bind: (chunk) => ({
      inputs: {},
      outputs: {
        weights: viewRows(engine, weights, fromStart(chunk)),
        blockSums: viewRows(engine, blockSums, fromStart(chunk)),
      },
    }),
    take: async (chunk) => {
      const positions = chunk.end - chunk.start;
      const sums = (await engine.download(viewRows(engine, blockSums, fromStart(chunk)))) as Float32Array;
      requireFinite(sums, blockCount, 'logits', shiftRanges(ranges, chunk));
      const drawn = drawBlocks(sums, blockCount, listUniform(ranges, chunk, draws, seed));
      const blocks = engine.view(weights, { offset: 0, shape: [positions * blockCount, BLOCK_IDS] });
      const rows = await takeBlocks(engine, gatherBlocks, blocks, drawn.wanted);
      parts.push(countDraws(drawn, rows, { positions, draws, blockCount }));
    },
    finish: async () => {
      const whole = joinLabels(parts);
      return ranges.map((range) => cutLabels(whole, range));
    },
    close: () => {
      engine.free(weights);
      engine.free(blockSums);
    },
  };
}

/** The ranges as they stand to the first position of a chunk. */
const shiftRanges = (ranges: readonly LabelRange[], chunk: Chunk): readonly LabelRange[] =>
  ranges.map((range) => ({ ...range, start: range.start - chunk.start, end: range.end - chunk.start }));

/** [positions of the chunk, draws] */
function listUniform(ranges: readonly LabelRange[], chunk: Chunk, draws: number, seed: number): Float64Array {
  const uniform = new Float64Array((chunk.end - chunk.start) * draws);
  for (const { rowId, start, end, positions } of ranges) {
    if (end <= chunk.start || start >= chunk.end) continue;
    const numbers = openUniformNumbers(seed, rowId);
    for (let label = Math.max(start, chunk.start); label < Math.min(end, chunk.end); label++) {
      const at = (label - chunk.start) * draws;
      numbers(positions[label - start]!, uniform.subarray(at, at + draws));
    }
  }
  return uniform;
}

/** The wanted rows of `weights`, a block in each; it is freed. */
async function takeBlocks(
  engine: Engine,
  program: Program,
  weights: DeviceTensor,
  wanted: readonly number[],
): Promise<Float32Array> {
  const inputs = {
    weights,
    indices: engine.upload(BigInt64Array.from(wanted, BigInt), 'int64', [wanted.length]),
  };
  const rows = engine.allocate('float32', [wanted.length, BLOCK_IDS]);
  try {
    await engine.run([{ kind: 'run', program, inputs, outputs: { rows } }]);
    return (await engine.download(rows)) as Float32Array;
  } finally {
    for (const tensor of [...Object.values(inputs), rows]) engine.free(tensor);
  }
}

function joinLabels(parts: readonly SampledLabels[]): SampledLabels {
  return {
    counts: Int32Array.from(parts.flatMap(({ counts }) => [...counts])),
    ids: Int32Array.from(parts.flatMap(({ ids }) => [...ids])),
    draws: Uint16Array.from(parts.flatMap(({ draws }) => [...draws])),
  };
}

function cutLabels({ counts, ids, draws }: SampledLabels, { start, end }: Chunk): SampledLabels {
  const sum = (sizes: Int32Array) => sizes.reduce((total, size) => total + size, 0);
  const own = counts.slice(start, end);
  const first = sum(counts.subarray(0, start));
  const last = first + sum(own);
  return { counts: own, ids: ids.slice(first, last), draws: draws.slice(first, last) };
}
