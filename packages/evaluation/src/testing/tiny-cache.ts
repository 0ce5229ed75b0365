import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { digestModel, openSafetensors } from '@stillhouse/checkpoint';
import { compileForwardPrograms, loadDecoder, openResidentPass, padSequences } from '@stillhouse/model-runner';
import type { Engine } from '@stillhouse/runtime';
import {
  type LabelledRow,
  labelPositions,
  measureChannelRms,
  openCacheWriter,
  quantiseHidden,
} from '@stillhouse/teacher-cache';
import { GOLDEN, VOCAB_SIZE } from './tiny-models.ts';

/** The rows of `qwen2-tiny`'s inputs, and both models' float64 logits at each of their label positions. */
export interface TinyRow {
  readonly id: string;
  readonly split: string;
  readonly inputIds: Int32Array;
  readonly lossMask: Uint8Array;
  /** Label positions, ascending. */
  readonly positions: readonly number[];
  /** One [V] for each label position. */
  readonly teacherLogits: readonly Float64Array[];
  readonly studentLogits: readonly Float64Array[];
  /** One [64] for each label position: what enters the teacher's output matrix. */
  readonly teacherHidden: readonly Float64Array[];
}

const numbers = (values: unknown) => Array.from(values as ArrayLike<bigint>, Number);

/** The teacher is `qwen2-tiny-untied`, run here in float64; the student's logits are the golden's. */
export async function readTinyRows(engine: Engine): Promise<readonly TinyRow[]> {
  const inputs = await openSafetensors(join(GOLDEN, 'qwen2-tiny/inputs.safetensors'));
  const [rows, length] = inputs.tensors.get('input_ids')!.shape as [number, number];
  const read = async (name: string) => numbers(await inputs.readInt(name));
  const [ids, attention, loss] = [await read('input_ids'), await read('attention_mask'), await read('loss_mask')];
  const expected = await openSafetensors(join(GOLDEN, 'qwen2-tiny/expected64.safetensors'));
  const student = await expected.read('logits', 'float64');
  await Promise.all([inputs.close(), expected.close()]);
  const sequences = Array.from({ length: rows }, (_, row) =>
    Int32Array.from(ids.slice(row * length, (row + 1) * length).filter((_id, t) => attention[row * length + t] === 1)),
  );
  const { hidden, head } = await runTeacher(engine, sequences, length);
  return sequences.map((inputIds, row) => {
    const positions = [...inputIds.keys()].filter((t) => loss[row * length + t] === 1);
    const lossMask = new Uint8Array(inputIds.length);
    for (const position of positions) lossMask[position + 1] = 1;
    const at = (values: Float64Array, width: number, position: number) =>
      values.slice((row * length + position) * width, (row * length + position + 1) * width);
    const teacherHidden = positions.map((position) => at(hidden, 64, position));
    return {
      id: `row-${row}`,
      split: row === 0 ? 'train' : 'held-out',
      inputIds,
      lossMask,
      positions,
      teacherHidden,
      teacherLogits: teacherHidden.map((state) => multiply(head, state)),
      studentLogits: positions.map((position) => at(student, VOCAB_SIZE, position)),
    };
  });
}

/** head [V, 64] times a state [64]. */
const multiply = (head: Float64Array, state: Float64Array) =>
  Float64Array.from({ length: head.length / state.length }, (_, id) =>
    state.reduce((sum, value, i) => sum + value * head[id * state.length + i]!, 0),
  );

async function runTeacher(engine: Engine, sequences: readonly Int32Array[], length: number) {
  const model = await loadDecoder(engine, join(GOLDEN, 'qwen2-tiny-untied'), 'float64');
  const programs = await compileForwardPrograms(engine, model.config, 'float64');
  const batch = padSequences(sequences);
  if (batch.length !== length) throw new Error(`the longest row has ${batch.length} tokens, not ${length}`);
  const pass = await openResidentPass(engine, programs, model, batch);
  const normed = engine.allocate('float64', pass.x.shape);
  const inputs = { x: pass.x, norm: model.norm };
  await engine.run([
    ...pass.embed,
    ...pass.layers,
    { kind: 'run', program: programs.finalNorm, inputs, outputs: { hidden: normed } },
  ]);
  const [hidden, head] = (await engine.downloadMany([normed, model.head])) as [Float64Array, Float64Array];
  pass.close();
  model.free();
  return { hidden, head };
}

export const logSoftmax = (logits: Float64Array, temperature: number): Float64Array => {
  const scaled = logits.map((logit) => logit / temperature);
  const most = scaled.reduce((a, b) => Math.max(a, b));
  const logZ = most + Math.log(scaled.reduce((sum, logit) => sum + Math.exp(logit - most), 0));
  return scaled.map((logit) => logit - logZ);
};

export interface TinyCacheOptions {
  readonly topk?: number | undefined;
  /** None: the tail is unknown. */
  readonly temperatures?: readonly number[];
  readonly hidden?: 'int8' | 'float32';
  /** Folder whose digests the cache gives as its teacher's; left out: it names none that exists. */
  readonly teacher?: string;
  /** Rows of nonsense behind the teacher's output matrix, as padding has. */
  readonly headPadding?: number;
  /** Folder of the tokenizer files to carry; null for none. */
  readonly tokenizer: string | null;
  /** What the cache says the tokenizer's number of ids is; null: it says nothing of a tokenizer. */
  readonly realVocabSize?: number | null;
}

/** Writes a cache of the rows with the labels asked for, by the format's own writer. */
export async function writeTinyCache(
  folder: string,
  rows: readonly TinyRow[],
  options: TinyCacheOptions,
): Promise<string> {
  const { topk, temperatures = [1, 2], hidden, headPadding = 0, tokenizer, realVocabSize = VOCAB_SIZE } = options;
  const vocabSize = VOCAB_SIZE + headPadding;
  const nowhere = { weightsSha256: '0'.repeat(64), configSha256: '0'.repeat(64) };
  const { weightsSha256, configSha256 } = options.teacher === undefined ? nowhere : await digestModel(options.teacher);
  const hasTeacher = topk !== undefined || hidden !== undefined;
  const writer = await openCacheWriter(
    folder,
    {
      teacher: hasTeacher
        ? {
            kind: 'weights',
            name: 'qwen2-tiny-untied',
            architecture: 'qwen2',
            weightsSha256,
            configSha256,
            hiddenSize: 64,
            layerCount: 2,
            vocabSize,
          }
        : null,
      tokenizer: realVocabSize === null ? null : { digest: '0'.repeat(64), realVocabSize, chatTemplateSha256: null },
      data: { sha256: '0'.repeat(64), name: 'tiny', rowCount: rows.length },
      maxLength: null,
      limit: null,
      labels: {
        topk:
          topk === undefined ? null : { k: topk, temperatures, tail: temperatures.length === 0 ? 'unknown' : 'exact' },
        hidden: hidden === undefined ? null : { layers: ['final'], dtype: hidden },
        head: hidden !== undefined,
      },
      positions: 'response',
      rowsPerShard: 2,
      generator: { name: 'test', version: '1' },
    },
    { totalRows: rows.length },
  );
  if (tokenizer !== null) {
    const names = ['tokenizer.json', 'tokenizer_config.json'];
    await writer.putTokenizerFiles(
      await Promise.all(names.map(async (name) => ({ name, bytes: await readFile(join(tokenizer, name)) }))),
    );
  }
  const states = rows.map(({ teacherHidden }) => Float32Array.from(teacherHidden.flatMap((state) => [...state])));
  let channelRms: Float32Array | undefined;
  if (hidden !== undefined) {
    const weights = await openSafetensors(join(GOLDEN, 'qwen2-tiny-untied/model.safetensors'));
    const head = await weights.read('lm_head.weight', 'float32');
    await weights.close();
    const padded = new Float32Array(vocabSize * 64).fill(0.7);
    padded.set(head);
    await writer.putOutputMatrix({
      dtype: 'float32',
      rows: vocabSize,
      columns: 64,
      chunks: [new Uint8Array(padded.buffer)],
    });
    if (hidden === 'int8') {
      channelRms = measureChannelRms(Float32Array.from(states.flatMap((state) => [...state])), 64);
      await writer.setScale('final', channelRms);
    }
  }
  const labelled = rows.map((row, index): LabelledRow => {
    const { id, split, inputIds, lossMask, positions, teacherLogits } = row;
    const base = { row: { id, split, inputIds, lossMask }, positions: labelPositions(lossMask, 'response') };
    const withTopK =
      topk === undefined ? base : { ...base, topk: bestOf(teacherLogits, topk, temperatures, positions.length) };
    if (hidden === undefined) return withTopK;
    const values = states[index]!;
    const final =
      hidden === 'float32'
        ? ({ layer: 'final', dtype: 'float32', width: 64, values } as const)
        : quantiseHidden('final', values, channelRms!);
    return { ...withTopK, hidden: new Map([['final', final]]) };
  });
  for (let shard = 0; shard < writer.shardCount; shard++) {
    const [first, end] = writer.shardRange(shard);
    await writer.writeShard(shard, labelled.slice(first, end));
  }
  await writer.finish();
  await writer.close();
  return folder;
}

function bestOf(logits: readonly Float64Array[], k: number, temperatures: readonly number[], count: number) {
  const best = logits.map((one) => {
    const logprobs = logSoftmax(one, 1);
    const ids = [...logprobs.keys()].sort((a, b) => logprobs[b]! - logprobs[a]! || a - b).slice(0, k);
    return { logprobs, ids };
  });
  return {
    counts: new Int32Array(count).fill(k),
    ids: Int32Array.from(best.flatMap(({ ids }) => ids)),
    logprobs: Float32Array.from(best.flatMap(({ logprobs, ids }) => ids.map((id) => logprobs[id]!))),
    logZ: Float32Array.from(
      best.flatMap(({ logprobs }) =>
        temperatures.map((t) => (t === 1 ? 0 : Math.log(logprobs.reduce((sum, l) => sum + Math.exp(l / t), 0)))),
      ),
    ),
  };
}
