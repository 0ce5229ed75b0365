import assert from 'node:assert/strict';
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { isStillhouseError } from '@stillhouse/errors';
import { makeTemporaryFolder } from '@stillhouse/testing';
import { test } from 'vitest';
import {
  describeParameters,
  type ModelToWrite,
  type ModelWeights,
  openModelWeights,
  readModelConfig,
  writeModelFolder,
} from '../index.ts';

const GOLDEN = fileURLToPath(new URL('../../../../test/golden/', import.meta.url));

const refused =
  (code: string, ...texts: readonly string[]) =>
  (error: unknown) => {
    assert.ok(isStillhouseError(error, code), String(error));
    for (const text of texts) assert.ok(error.message.includes(text), `${error.message} says ${text}`);
    return true;
  };

interface Prepared {
  readonly source: ModelWeights;
  readonly model: ModelToWrite;
  readonly folder: string;
}

/** Everything to write a golden model again. */
async function prepare(t: Parameters<typeof makeTemporaryFolder>[0], name: string): Promise<Prepared> {
  const folder = await makeTemporaryFolder(t);
  const config = await readModelConfig(join(GOLDEN, name));
  const source = await openModelWeights(join(GOLDEN, name), config);
  t.onTestFinished(() => source.close());
  const model = {
    out: join(folder, 'model'),
    config: config.raw,
    parameters: describeParameters(config),
    read: (tensor: string) => source.tensors.get(tensor)!.read('float32'),
    dtype: 'float32',
  } as const;
  return { folder, source, model };
}

const readJson = async (...path: string[]) => JSON.parse(await readFile(join(...path), 'utf8'));

test('a written folder holds the same model', async (t) => {
  for (const [name, dtype] of [
    ['qwen2-tiny', 'float32'],
    ['qwen2-tiny-untied', 'bfloat16'],
    ['llama-tiny', 'float32'],
    ['llama3-rope-tiny', 'float16'],
  ] as const) {
    const { model, source, folder } = await prepare(t, name);
    await writeModelFolder({ ...model, dtype });
    assert.deepEqual(await readdir(folder), ['model']);
    assert.deepEqual(await readdir(model.out), ['config.json', 'generation_config.json', 'model.safetensors']);
    const config = await readModelConfig(model.out);
    assert.deepEqual(config.raw, { ...model.config, torch_dtype: dtype });
    const written = await openModelWeights(model.out, config);
    for (const { name: tensor } of model.parameters) {
      assert.equal(written.tensors.get(tensor)!.dtype, dtype);
      const [was, is] = await Promise.all([source, written].map(({ tensors }) => tensors.get(tensor)!.read('float32')));
      const tolerance = dtype === 'float16' ? 2 ** -11 : 0;
      assert.ok(was!.every((value, i) => Math.abs(value - is![i]!) <= tolerance * Math.abs(value) + tolerance * 1e-4));
    }
    await written.close();
  }
});

test('the dtype key of transformers 5 is kept where a config has it', async (t) => {
  const { model } = await prepare(t, 'llama-tiny');
  const { torch_dtype: _, ...rest } = model.config;
  await writeModelFolder({ ...model, config: { ...rest, dtype: 'float32' }, dtype: 'bfloat16' });
  assert.deepEqual(await readJson(model.out, 'config.json'), { ...rest, dtype: 'bfloat16' });
});

test('files beyond weights and shape come along; without any, the special ids are written', async (t) => {
  const { model, folder } = await prepare(t, 'llama-tiny');
  await writeModelFolder(model);
  assert.deepEqual(await readJson(model.out, 'generation_config.json'), {
    _from_model_config: true,
    bos_token_id: 1,
    eos_token_id: 2,
    pad_token_id: 0,
  });
  const from = join(folder, 'from');
  await mkdir(join(from, 'tokenizer_extras'), { recursive: true });
  const carried = ['LICENSE', 'chat_template.jinja', 'generation_config.json', 'merges.txt', 'tokenizer.json'];
  for (const name of [...carried, 'model-00001-of-00002.safetensors', 'optimizer.pt', 'config.json']) {
    await writeFile(join(from, name), `{"from": "${name}"}`);
  }
  const out = join(folder, 'carried');
  await writeModelFolder({ ...model, out, carryFrom: from });
  assert.deepEqual(await readdir(out), [...carried, 'config.json', 'model.safetensors'].sort());
  for (const name of carried) assert.deepEqual(await readJson(out, name), { from: name });
});

test('a model of another layout is replaced without leftovers, and other files stay', async (t) => {
  const { model } = await prepare(t, 'llama-tiny');
  await mkdir(join(model.out, 'checkpoints'), { recursive: true });
  for (const name of ['metrics.jsonl', 'recipe.json', 'tokenizer.json', 'model-00001-of-00009.safetensors']) {
    await writeFile(join(model.out, name), name);
  }
  await writeModelFolder({ ...model, shardSizeBytes: 100_000 });
  const kept = ['checkpoints', 'metrics.jsonl', 'recipe.json'];
  const configs = ['config.json', 'generation_config.json'];
  const shards = [1, 2, 3].map((n) => `model-0000${n}-of-00003.safetensors`);
  assert.deepEqual(
    await readdir(model.out),
    [...kept, ...configs, ...shards, 'model.safetensors.index.json'].sort(),
    'a tokenizer that is not carried is not that of the new model',
  );
  const index = await readJson(model.out, 'model.safetensors.index.json');
  assert.equal(index.metadata.total_size, 4 * index.metadata.total_parameters);
  assert.deepEqual(Object.keys(index.weight_map).sort(), model.parameters.map(({ name }) => name).sort());
  await writeModelFolder(model);
  assert.deepEqual(await readdir(model.out), [...kept, ...configs, 'model.safetensors'].sort());
  await (await openModelWeights(model.out, await readModelConfig(model.out))).close();
});

test('a model that cannot be written leaves what stood there before', async (t) => {
  const { model, folder, source } = await prepare(t, 'qwen2-tiny');
  await writeModelFolder(model);
  const before = await readFile(join(model.out, 'model.safetensors'));
  const bad = 'model.layers.1.mlp.up_proj.weight';
  const changed = (value: number) => async (name: string) => {
    const values = await source.tensors.get(name)!.read('float32');
    if (name === bad) values[77] = value;
    return values;
  };
  const reject = (changes: Partial<ModelToWrite>, check: (error: unknown) => boolean) =>
    assert.rejects(writeModelFolder({ ...model, ...changes }), check);
  await reject({ read: changed(Number.NaN) }, refused('WEIGHT_NOT_FINITE', model.out, bad, 'element 77'));
  await reject({ read: changed(1e5), dtype: 'float16' }, refused('TENSOR_NOT_REPRESENTABLE', bad, 'element 77'));
  await reject({ read: async () => new Float32Array(1) }, refused('TENSOR_DATA_MISMATCH', 'model.embed_tokens.weight'));
  await reject({ parameters: model.parameters.slice(1) }, refused('PARAMETERS_MISMATCH', 'model.embed_tokens.weight'));
  const extra = { name: 'lm_head.weight', shape: [512, 64] };
  await reject({ parameters: [...model.parameters, extra] }, refused('PARAMETERS_MISMATCH', 'got lm_head.weight'));
  await reject({ config: { ...model.config, vocab_size: 511 } }, refused('PARAMETERS_MISMATCH', '[511, 64]'));
  await reject({ config: { ...model.config, hidden_act: 'gelu' } }, refused('ACTIVATION_NOT_SUPPORTED'));
  await reject({ carryFrom: join(folder, 'absent') }, refused('MODEL_FOLDER_MISSING', 'absent'));
  await reject({ out: join(model.out, 'config.json') }, refused('OUTPUT_NOT_A_FOLDER', 'config.json'));
  assert.deepEqual(await readFile(join(model.out, 'model.safetensors')), before);
  assert.deepEqual(await readdir(folder), ['model']);
});
