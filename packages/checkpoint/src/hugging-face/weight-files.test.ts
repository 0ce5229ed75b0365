import assert from 'node:assert/strict';
import { cp, mkdir, realpath, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { isStillhouseError } from '@stillhouse/errors';
import { makeTemporaryFolder } from '@stillhouse/testing';
import { test } from 'vitest';
import {
  assertFinite,
  digestModel,
  type ModelWeights,
  openModelWeights,
  openSafetensors,
  readModelConfig,
  type TensorToWrite,
  writeModelFolder,
  writeSafetensors,
} from '../index.ts';
import { openWeightFiles } from './weight-files.ts';

const GOLDEN = fileURLToPath(new URL('../../../../test/golden/', import.meta.url));
const MODELS = ['qwen2-tiny', 'qwen2-tiny-untied', 'llama-tiny', 'llama3-rope-tiny'];

const refused =
  (code: string, ...texts: readonly string[]) =>
  (error: unknown) => {
    assert.ok(isStillhouseError(error, code), String(error));
    for (const text of texts) assert.ok(error.message.includes(text), `${error.message} says ${text}`);
    return true;
  };

test('every golden model has exactly the tensors its config asks for', async () => {
  for (const name of MODELS) {
    const folder = join(GOLDEN, name);
    const source = await openModelWeights(folder);
    assert.equal((await source.norm.read('float32')).length, name.startsWith('qwen2') ? 64 : 48);
    await source.close();
  }
});

test('stored float32 and float64 goldens are the same numbers', async () => {
  const narrow = await openSafetensors(join(GOLDEN, 'qwen2-tiny', 'expected.safetensors'));
  const wide = await openSafetensors(join(GOLDEN, 'qwen2-tiny', 'expected64.safetensors'));
  const [a, b] = [await narrow.read('logits', 'float64'), await wide.read('logits', 'float32')];
  assert.equal(a.length, 2 * 24 * 512);
  assert.ok(a.every((value, i) => Math.abs(value - b[i]!) < 5e-5));
  await narrow.close();
  await wide.close();
});

test("the hub's cache of links is read through to the real files", async (t) => {
  const root = await realpath(await makeTemporaryFolder(t));
  const [blobs, snapshot] = [join(root, 'blobs'), join(root, 'snapshots', '0123abc')];
  await mkdir(blobs);
  await mkdir(snapshot, { recursive: true });
  for (const [name, blob] of [
    ['config.json', 'b10b1'],
    ['model.safetensors', 'b10b2'],
  ] as const) {
    await cp(join(GOLDEN, 'llama-tiny', name), join(blobs, blob));
    await symlink(join('..', '..', 'blobs', blob), join(snapshot, name));
  }
  const source = await openModelWeights(snapshot);
  assert.equal(source.head.file, join(blobs, 'b10b2'));
  assert.equal((await source.head.read('float32')).length, 128 * 48);
  await source.close();
  const { weightsSha256, configSha256 } = await digestModel(join(GOLDEN, 'llama-tiny'));
  const digest = await digestModel(snapshot);
  assert.deepEqual([digest.weightsSha256, digest.configSha256], [weightsSha256, configSha256]);
});

/** A model in several shards, made from `llama-tiny`. */
async function makeShardedModel(folder: string): Promise<void> {
  const from = join(GOLDEN, 'llama-tiny');
  const config = await readModelConfig(from);
  const source = await openModelWeights(from, config);
  await writeModelFolder({
    out: folder,
    config: config.raw,
    parameters: [...source.tensors.values()],
    read: (name) => source.tensors.get(name)!.read('float32'),
    dtype: 'float32',
    shardSizeBytes: 100_000,
  });
  await source.close();
}

test('a sharded model reads as one; every way its index can be wrong has a code', async (t) => {
  const folder = join(await makeTemporaryFolder(t), 'model');
  await makeShardedModel(folder);
  await (await openModelWeights(folder)).close();
  const whole = await openWeightFiles(join(GOLDEN, 'llama-tiny'));
  const sharded = await openWeightFiles(folder);
  const files = new Set([...sharded.tensors.values()].map(({ file }) => file));
  assert.equal(files.size, 3);
  assert.deepEqual([...sharded.tensors.keys()].sort(), [...whole.tensors.keys()].sort());
  for (const name of whole.tensors.keys()) assert.deepEqual(await sharded.readRaw(name), await whole.readRaw(name));
  await sharded.close();
  await whole.close();

  const indexFile = join(folder, 'model.safetensors.index.json');
  const name = 'model.norm.weight';
  const first = 'model-00001-of-00003.safetensors';
  const reject = async (index: unknown, code: string, ...texts: readonly string[]) => {
    await writeFile(indexFile, typeof index === 'string' ? index : JSON.stringify(index));
    await assert.rejects(openModelWeights(folder), refused(code, indexFile.slice(0, -11), ...texts));
  };
  await reject('{', 'WEIGHT_INDEX_INVALID', 'not JSON');
  await reject({}, 'WEIGHT_INDEX_INVALID', 'weight_map');
  await reject({ weight_map: {} }, 'WEIGHT_INDEX_INVALID', 'weight_map');
  await reject({ weight_map: { [name]: 7 } }, 'WEIGHT_INDEX_INVALID', 'weight_map');
  await reject({ weight_map: { [name]: 'other.safetensors' } }, 'WEIGHT_SHARD_MISSING', 'other.safetensors');
  for (const outside of ['../model/x', '/etc/passwd', 'a\\b', '..', '']) {
    await reject({ weight_map: { [name]: outside } }, 'WEIGHT_INDEX_ESCAPES_FOLDER', JSON.stringify(outside));
  }
  await writeFile(indexFile, JSON.stringify({ weight_map: { invented: first } }));
  await assert.rejects(openModelWeights(folder), refused('WEIGHT_INDEX_TENSOR_MISSING', 'invented', first));
  await rm(indexFile);
  await assert.rejects(openModelWeights(folder), refused('WEIGHTS_MISSING', folder, 'model.safetensors'));
});

type Change = (tensors: Map<string, TensorToWrite>) => void;

/** `llama3-rope-tiny` (tied) with other tensors; bytes of new ones are zero. */
async function makeChangedModel(folder: string, change: Change, fill?: Uint8Array): Promise<string> {
  const from = join(GOLDEN, 'llama3-rope-tiny');
  await mkdir(folder, { recursive: true });
  await cp(join(from, 'config.json'), join(folder, 'config.json'));
  const source = await openSafetensors(join(from, 'model.safetensors'));
  const tensors = new Map<string, TensorToWrite>(source.tensors);
  change(tensors);
  const file = join(folder, 'model.safetensors');
  await writeSafetensors(file, tensors.values(), async (name) => {
    if (source.tensors.get(name) === tensors.get(name)) return source.readRaw(name);
    const { shape, dtype } = tensors.get(name)!;
    const size = shape.reduce((product, size) => product * size, 1) * (dtype === 'int8' ? 1 : 4);
    return fill ?? new Uint8Array(size);
  });
  await source.close();
  return file;
}

const set = (name: string, shape: readonly number[], dtype: TensorToWrite['dtype'] = 'float32'): Change => {
  return (tensors) => tensors.set(name, { name, shape, dtype });
};

test('tensors that do not fit the config are named with expectation and file', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const norm = 'model.layers.1.input_layernorm.weight';
  const open = async (change: Change): Promise<ModelWeights> => {
    await makeChangedModel(folder, change);
    return openModelWeights(folder);
  };
  const file = join(folder, 'model.safetensors');
  await assert.rejects(
    open((tensors) => tensors.delete(norm)),
    refused('MODEL_TENSOR_MISSING', folder, norm, 'shape [48]'),
  );
  await assert.rejects(open(set(norm, [47])), refused('MODEL_TENSOR_SHAPE', file, norm, 'expected [48], got [47]'));
  await assert.rejects(open(set(norm, [48], 'int8')), refused('MODEL_TENSOR_DTYPE', file, norm, 'got int8 [48]'));
  const bias = 'model.layers.0.self_attn.q_proj.bias';
  await assert.rejects(open(set(bias, [48])), refused('MODEL_TENSOR_UNEXPECTED', file, bias));
  const layer = 'model.layers.2.input_layernorm.weight';
  await assert.rejects(open(set(layer, [48])), refused('MODEL_TENSOR_UNEXPECTED', file, layer, '2 layers'));
  const derived = await open(set('model.layers.0.self_attn.rotary_emb.inv_freq', [8]));
  await derived.close();
  await (await open(() => {})).close();
});

test('a stored output matrix beside a tied embedding must be the embedding', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const source = await openWeightFiles(join(GOLDEN, 'llama3-rope-tiny'));
  const embedding = await source.readRaw('model.embed_tokens.weight');
  await source.close();
  const config = await readModelConfig(join(GOLDEN, 'llama3-rope-tiny'));
  await makeChangedModel(folder, set('lm_head.weight', [128, 48]), embedding);
  await (await openModelWeights(folder, config)).close();
  embedding[embedding.length - 1]! ^= 1;
  const file = await makeChangedModel(folder, set('lm_head.weight', [128, 48]), embedding);
  await assert.rejects(openModelWeights(folder, config), refused('MODEL_TIED_HEAD_DIFFERS', file, 'lm_head.weight'));
  await makeChangedModel(folder, set('lm_head.weight', [128, 24]));
  await assert.rejects(openModelWeights(folder, config), refused('MODEL_TIED_HEAD_DIFFERS', file));
});

test('NaN and infinity in weights are named by tensor and first element', () => {
  assertFinite('w', Float32Array.of(0, -3e38, 1e-45), 'f');
  for (const [value, text] of [
    [Number.NaN, 'NaN'],
    [Number.POSITIVE_INFINITY, 'Infinity'],
    [Number.NEGATIVE_INFINITY, '-Infinity'],
  ] as const) {
    const check = refused('WEIGHT_NOT_FINITE', 'a/model.safetensors', 'tensor w', 'element 2', `got ${text}`);
    assert.throws(() => assertFinite('w', Float32Array.of(1, 2, value, Number.NaN), 'a/model.safetensors'), check);
    assert.throws(() => assertFinite('w', Float64Array.of(1, 2, value), 'a/model.safetensors'), check);
  }
});

test('the digest changes with weights, shards and config, and with nothing else', async (t) => {
  const folder = join(await makeTemporaryFolder(t), 'a');
  await makeShardedModel(folder);
  const digest = await digestModel(folder);
  assert.deepEqual(
    digest.files.map(({ path }) => path),
    [
      'config.json',
      'generation_config.json',
      'model-00001-of-00003.safetensors',
      'model-00002-of-00003.safetensors',
      'model-00003-of-00003.safetensors',
      'model.safetensors.index.json',
    ],
  );
  assert.ok(digest.files.every(({ sha256, sizeBytes }) => /^[0-9a-f]{64}$/.test(sha256) && sizeBytes > 0));
  const moved = `${folder}-moved`;
  await rename(folder, moved);
  await writeFile(join(moved, 'README.md'), 'not part of the model');
  assert.deepEqual(await digestModel(moved), digest);
  await writeFile(join(moved, 'config.json'), '{}');
  const other = await digestModel(moved);
  assert.equal(other.weightsSha256, digest.weightsSha256);
  assert.notEqual(other.configSha256, digest.configSha256);
  const shard = join(moved, 'model-00002-of-00003.safetensors');
  await rename(shard, `${shard}.x`);
  await rename(join(moved, 'model-00003-of-00003.safetensors'), shard);
  await rename(`${shard}.x`, join(moved, 'model-00003-of-00003.safetensors'));
  assert.notEqual((await digestModel(moved)).weightsSha256, digest.weightsSha256, 'which shard is which matters');
  await assert.rejects(digestModel(join(moved, 'absent')), refused('MODEL_FOLDER_MISSING'));
});
