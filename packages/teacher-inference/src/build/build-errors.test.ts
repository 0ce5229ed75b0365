import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { openSafetensors, readModelConfig } from '@stillhouse/checkpoint';
import { isStillhouseError } from '@stillhouse/errors';
import { openEngine } from '@stillhouse/runtime';
import { makeTemporaryFolder } from '@stillhouse/testing';
import { type TestContext, test } from 'vitest';
import { buildTeacherCache, planBuild } from '../index.ts';
import type { BuildSettings } from '../settings/build-settings.ts';
import { buildSettings, idRows, writeRows } from '../testing/build-folder.ts';
import { goldenFolder, readGoldenRows, scoreWith } from '../testing/golden-teachers.ts';

const TINY_BPE = fileURLToPath(new URL('../../../../test/tokenizer/tiny-bpe', import.meta.url));
const TEACHER = goldenFolder('qwen2-tiny-untied');

interface Refusal {
  readonly what: string;
  readonly code: string;
  readonly message: RegExp;
  /** Beside a good teacher, good rows and a new folder. */
  readonly settings?: (folder: string) => Promise<Partial<BuildSettings>>;
  readonly rows?: readonly object[];
}

const ids = (inputIds: readonly number[]) => ({
  id: 'bad',
  input_ids: inputIds,
  loss_mask: inputIds.map((_, i) => (i > 0 ? 1 : 0)),
});

/** A copy of the golden teacher with keys of its config changed. */
async function copyTeacher(folder: string, changes: object = {}): Promise<string> {
  const copy = join(folder, 'teacher');
  await mkdir(copy);
  const config = JSON.parse(await readFile(join(TEACHER, 'config.json'), 'utf8')) as object;
  await writeFile(join(copy, 'config.json'), JSON.stringify({ ...config, ...changes }));
  await writeFile(join(copy, 'model.safetensors'), await readFile(join(TEACHER, 'model.safetensors')));
  return copy;
}

/** Overwrites one bfloat16 element of a tensor. */
async function overwrite(folder: string, tensor: string, element: number, bits: number): Promise<void> {
  const path = join(folder, 'model.safetensors');
  const source = await openSafetensors(path);
  const { offsetBytes, dtype } = source.tensors.get(tensor)!;
  await source.close();
  assert.equal(dtype, 'bfloat16');
  const bytes = await readFile(path);
  bytes.writeUInt16LE(bits, offsetBytes + 2 * element);
  await writeFile(path, bytes);
}

const REFUSALS: readonly Refusal[] = [
  {
    what: 'no data',
    code: 'SETTING_MISSING',
    message: /--data: .*required/,
    settings: async () => ({ data: undefined }),
  },
  { what: 'no out', code: 'SETTING_MISSING', message: /--out: .*required/, settings: async () => ({ out: undefined }) },
  {
    what: 'no teacher',
    code: 'SETTING_MISSING',
    message: /--teacher: .*required/,
    settings: async () => ({ teacher: undefined }),
  },
  {
    what: 'no model folder',
    code: 'NOT_A_MODEL_FOLDER',
    message: /teacher: .*no config\.json/,
    settings: async (folder) => {
      await mkdir(join(folder, 'teacher'));
      return { teacher: join(folder, 'teacher') };
    },
  },
  {
    what: 'an architecture of another kind',
    code: 'ARCHITECTURE_NOT_SUPPORTED',
    message: /gpt2/,
    settings: async (folder) => ({
      teacher: await copyTeacher(folder, { model_type: 'gpt2', architectures: ['GPT2LMHeadModel'] }),
    }),
  },
  {
    what: 'weights of another shape',
    code: 'MODEL_TENSOR_SHAPE',
    message: /tensor model\..*config\.json/,
    settings: async (folder) => ({ teacher: await copyTeacher(folder, { intermediate_size: 96 }) }),
  },
  {
    what: 'NaN in a weight',
    code: 'WEIGHT_NOT_FINITE',
    message: /model\.layers\.1\.mlp\.up_proj\.weight.*element 7/,
    settings: async (folder) => {
      const teacher = await copyTeacher(folder);
      await overwrite(teacher, 'model.layers.1.mlp.up_proj.weight', 7, 0x7fc0);
      return { teacher };
    },
  },
  {
    what: 'an infinite weight',
    code: 'WEIGHT_NOT_FINITE',
    message: /lm_head\.weight.*element 0/,
    settings: async (folder) => {
      const teacher = await copyTeacher(folder);
      await overwrite(teacher, 'lm_head.weight', 0, 0xff80);
      return { teacher };
    },
  },
  {
    what: 'none beside other labels',
    code: 'LABELS_CONTRADICTORY',
    message: /--labels.*none goes with nothing else.*got none,topk/,
    settings: async () => ({ labels: ['none', 'topk'] }),
  },
  {
    what: 'top-k larger than the vocabulary',
    code: 'TOP_K_LARGER_THAN_VOCABULARY',
    message: /--top-k.*at most 512, got 513/,
    settings: async () => ({ topK: 513 }),
  },
  {
    what: 'a fixed k beside a mass',
    code: 'LABELS_CONTRADICTORY',
    message: /--top-k: .*follows from --top-p.*--min-k and --max-k/,
    settings: async () => ({ topP: 0.9 }),
  },
  {
    what: 'bounds of a mass without it',
    code: 'LABELS_CONTRADICTORY',
    message: /--min-k: .*Give --top-p/,
    settings: async () => ({ minK: 3 }),
  },
  {
    what: 'bounds in the wrong order',
    code: 'LABELS_CONTRADICTORY',
    message: /--min-k: it is above --max-k 4/,
    settings: async () => ({ topK: undefined, topP: 0.9, minK: 5, maxK: 4 }),
  },
  {
    what: 'a mass for labels that are not asked for',
    code: 'LABELS_CONTRADICTORY',
    message: /--top-p: .*Add topk to --labels/,
    settings: async () => ({ labels: ['hidden'], topP: 0.9 }),
  },
  {
    what: 'draws for labels that are not asked for',
    code: 'LABELS_CONTRADICTORY',
    message: /--draws: .*Add sampled to --labels/,
    settings: async () => ({ draws: 9 }),
  },
  {
    what: 'plain labels of rounded logprobs',
    code: 'LABELS_CONTRADICTORY',
    message: /--logprob-dtype: .*packing zstd/,
    settings: async () => ({ packing: 'plain', logprobDtype: 'u8' }),
  },
  {
    what: 'a most that is larger than the vocabulary',
    code: 'TOP_K_LARGER_THAN_VOCABULARY',
    message: /--max-k.*at most 512, got 513/,
    settings: async () => ({ topK: undefined, topP: 0.9, maxK: 513 }),
  },
  {
    what: 'a pinned token without a tokenizer',
    code: 'PINNED_ID_UNKNOWN',
    message: /--pin: a token needs a tokenizer; .*got <eos>/,
    settings: async () => ({ pin: ['<eos>'] }),
  },
  {
    what: 'a pinned id that is not there',
    code: 'PINNED_ID_UNKNOWN',
    message: /--pin: .*0 to 511, got 512/,
    settings: async () => ({ pin: [512] }),
  },
  {
    what: 'auto beside a pinned id',
    code: 'LABELS_CONTRADICTORY',
    message: /--pin: .*got auto,5/,
    settings: async () => ({ pin: ['auto', 5] }),
  },
  {
    what: 'a layer that is not there',
    code: 'HIDDEN_LAYER_OUT_OF_RANGE',
    message: /--hidden-layers.*final, 0 to 2 or attention.1 to attention.2, got 3/,
    settings: async () => ({ hiddenLayers: ['final', 3] }),
  },
  {
    what: 'a tokenizer with more ids than the teacher',
    code: 'VOCABULARY_MISMATCH',
    message: /tiny-bpe.*at most 512 ids, got 2003/,
    settings: async () => ({ tokenizer: TINY_BPE }),
  },
  {
    what: 'text without a tokenizer',
    code: 'TOKENIZER_REQUIRED',
    message: /line 1.*no tokenizer/,
    rows: [{ text: 'hello' }],
  },
  {
    what: 'an id beyond the vocabulary',
    code: 'TOKEN_ID_OUT_OF_RANGE',
    message: /"bad".*below 512, got 512/,
    rows: [ids([1, 512])],
  },
  {
    what: 'a row beyond the context',
    code: 'ROW_TOO_LONG',
    message: /"bad".*at most 256 tokens, got 257/,
    rows: [ids(new Array(257).fill(1))],
  },
  { what: 'no rows', code: 'DATA_EMPTY', message: /rows\.jsonl/, rows: [] },
  {
    what: 'a folder with other things in it',
    code: 'CACHE_FOLDER_NOT_EMPTY',
    message: /not a teacher cache/,
    settings: async (folder) => {
      await mkdir(join(folder, 'other'));
      await writeFile(join(folder, 'other', 'thesis.txt'), 'do not touch');
      return { out: join(folder, 'other') };
    },
  },
];

async function prepare(t: TestContext, refusal: Pick<Refusal, 'settings' | 'rows'>) {
  const folder = await makeTemporaryFolder(t);
  const data = await writeRows(join(folder, 'rows.jsonl'), refusal.rows ?? idRows(4));
  const out = join(folder, 'cache');
  const change = (await refusal.settings?.(folder)) ?? {};
  return { out, settings: { ...buildSettings({ teacher: TEACHER, data, out, topK: 8 }), ...change } as BuildSettings };
}

for (const refusal of REFUSALS) {
  test(`refused, and nothing is written: ${refusal.what}`, async (t) => {
    const { out, settings } = await prepare(t, refusal);
    await assert.rejects(buildTeacherCache(settings), (error) => {
      assert.ok(isStillhouseError(error), String(error));
      assert.equal(error.code, refusal.code);
      assert.match(error.message, refusal.message);
      return true;
    });
    assert.equal(existsSync(out), false);
  });
}

test('the golden context is exactly long enough', async (t) => {
  const { settings } = await prepare(t, {
    rows: [ids(new Array((await readModelConfig(TEACHER)).maxPositions).fill(1))],
  });
  assert.equal((await planBuild(settings)).rows, 1);
});

test('words and numbers that no setting takes', () => {
  assert.throws(
    () => buildSettings({ labels: ['topk', 'logits'] as never }),
    /--labels.*topk, sampled, hidden or none/,
  );
  assert.throws(() => buildSettings({ temperatures: [1, 0] }), /--temperatures.*above 0, from 0\.01 to 1000/);
  assert.throws(
    () => buildSettings({ hiddenLayers: ['last'] as never }),
    /--hidden-layers.*final, layer numbers or attention.n/,
  );
  assert.throws(() => buildSettings({ hiddenLayers: [-1] }), /--hidden-layers/);
  assert.throws(() => buildSettings({ topK: 0 }), /--top-k.*at least 1/);
  assert.throws(() => buildSettings({ topP: 1 }), /--top-p.*above 0/);
  assert.throws(() => buildSettings({ draws: 65_536 }), /--draws.*at most 65535/);
  assert.throws(() => buildSettings({ sampleTemperature: 0 }), /--sample-temperature.*at least 0.01/);
});

test('a dry run is a plan', async (t) => {
  const { settings, out } = await prepare(t, {});
  await assert.rejects(buildTeacherCache({ ...settings, dryRun: true }), TypeError);
  assert.equal(existsSync(out), false);
});

/** The weights are finite, and what they compute is not. */
test('outputs that overflow are refused with the row', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const teacher = await copyTeacher(folder);
  const { config, rows } = await readGoldenRows('qwen2-tiny-untied');
  const engine = await openEngine({ threads: 1 });
  t.onTestFinished(() => engine.close());
  const score = (dtype: 'int8' | 'float16', layer: 'final' | number, topk: boolean) =>
    scoreWith(engine, teacher, rows, {
      labels: { topk: topk ? { k: 4, temperatures: [2] } : null, hidden: { layers: [layer], dtype }, head: false },
      positions: 'all',
      batchTokens: 64,
    });
  const refusedWith = (code: string, message: RegExp) => (error: unknown) => {
    assert.ok(isStillhouseError(error, code), String(error));
    assert.match(error.message, message);
    return true;
  };
  const first = rows[1]!.inputIds[3]!;
  await overwrite(teacher, 'model.embed_tokens.weight', first * config.hiddenSize, 0x4780); // 65536
  await assert.rejects(
    score('float16', 0, false),
    refusedWith('HIDDEN_STATE_OUT_OF_RANGE', /row row-\d, label position \d+: .*the embeddings.*f32/),
  );
  await score('int8', 0, false);
  for (let channel = 0; channel < config.hiddenSize; channel++) {
    await overwrite(teacher, 'lm_head.weight', channel, 0x7f61); // 3e38
  }
  await assert.rejects(
    score('int8', 'final', true),
    refusedWith('TEACHER_OUTPUT_NOT_FINITE', /row row-\d, label position \d+: .*logits/),
  );
  const sampled = scoreWith(engine, teacher, rows, {
    labels: { topk: null, sampled: { draws: 3, temperature: 1 }, hidden: null, head: false },
    positions: 'all',
    batchTokens: 64,
  });
  await assert.rejects(sampled, refusedWith('TEACHER_OUTPUT_NOT_FINITE', /row row-\d, label position \d+: .*logits/));
  for (let channel = 0; channel < config.hiddenSize; channel++) {
    await overwrite(teacher, 'model.layers.0.mlp.up_proj.weight', channel, 0x7149); // 1e30
  }
  await overwrite(teacher, 'model.layers.0.mlp.down_proj.weight', 0, 0x7f61);
  await assert.rejects(
    score('int8', 1, false),
    refusedWith('TEACHER_OUTPUT_NOT_FINITE', /row row-\d, label position \d+: .*layer 1/),
  );
});
