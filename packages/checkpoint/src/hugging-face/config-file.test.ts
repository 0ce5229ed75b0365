import assert from 'node:assert/strict';
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { isStillhouseError } from '@stillhouse/errors';
import { makeTemporaryFolder } from '@stillhouse/testing';
import { test } from 'vitest';
import { countParameters, describeParameters, parseModelConfig, readModelConfig } from '../index.ts';

const CONFIGS = fileURLToPath(new URL('../../../../test/configs/', import.meta.url));
const GOLDEN = fileURLToPath(new URL('../../../../test/golden/', import.meta.url));

type Json = Record<string, unknown>;

const loadConfig = async (name: string) => JSON.parse(await readFile(join(CONFIGS, `${name}.json`), 'utf8')) as Json;

/** Counts of the published models. */
const PARAMETER_COUNTS = {
  'qwen2.5-0.5b-instruct': 494_032_768,
  'qwen2.5-1.5b-instruct': 1_543_714_304,
  'deepseek-r1-distill-qwen-1.5b': 1_777_088_000,
  'qwen2-7b-instruct': 7_615_616_512,
  'deepseek-r1-distill-qwen-7b': 7_615_616_512,
  'deepseek-r1-distill-qwen-32b': 32_763_876_352,
  'deepseek-r1-distill-llama-8b': 8_030_261_248,
  'smollm2-135m': 134_515_008,
};

test('real configs give the parameter counts of the published models', async () => {
  for (const [name, count] of Object.entries(PARAMETER_COUNTS)) {
    assert.equal(countParameters(parseModelConfig(await loadConfig(name), name)), count, name);
  }
  const tested = [...Object.keys(PARAMETER_COUNTS), 'deepseek-v3-r1'].map((name) => `${name}.json`);
  assert.deepEqual(await readdir(CONFIGS), tested.sort(), 'every config has a test');
});

test('a config is read in the form of transformers 4 and of transformers 5', async () => {
  const old = await loadConfig('deepseek-r1-distill-llama-8b');
  const { rope_theta, rope_scaling, torch_dtype, ...rest } = old;
  const renewed = { ...rest, dtype: torch_dtype, rope_parameters: { ...(rope_scaling as Json), rope_theta } };
  const config = parseModelConfig(old, 'old');
  assert.deepEqual(config.rope, {
    theta: 500_000,
    scaling: {
      kind: 'llama3',
      factor: 8,
      lowFrequencyFactor: 1,
      highFrequencyFactor: 4,
      originalMaxPositions: 8192,
    },
  });
  assert.deepEqual({ ...parseModelConfig(renewed, 'new'), raw: old }, config);
  const plain = { ...rest, rope_parameters: { rope_type: 'default', rope_theta: 1e6 } };
  assert.deepEqual(parseModelConfig(plain, 'new').rope, { theta: 1e6 });
  // Older still: `type`, and no theta at all.
  const { rope_type, ...scaling } = rope_scaling as Json;
  assert.equal(parseModelConfig({ ...rest, rope_scaling: { ...scaling, type: rope_type } }, 'x').rope.theta, 10_000);
});

test('biases, head width and ties are those that transformers gives the architecture', async () => {
  const llama = await loadConfig('smollm2-135m');
  const qwen = await loadConfig('qwen2.5-0.5b-instruct');
  const biases = (json: Json) => {
    const { attentionBias, attentionOutputBias, mlpBias } = parseModelConfig(json, 'x');
    return [attentionBias, attentionOutputBias, mlpBias];
  };
  assert.deepEqual(biases(qwen), [true, false, false]);
  assert.deepEqual(biases({ ...qwen, attention_bias: false, mlp_bias: true }), [true, false, false]);
  assert.deepEqual(biases(llama), [false, false, false]);
  assert.deepEqual(biases({ ...llama, attention_bias: true }), [true, true, false]);
  assert.deepEqual(biases({ ...llama, mlp_bias: true }), [false, false, true]);
  assert.equal(parseModelConfig(llama, 'x').headDim, 64);
  assert.equal(parseModelConfig({ ...llama, head_dim: 32 }, 'x').headDim, 32);
  assert.equal(parseModelConfig({ ...llama, num_key_value_heads: null }, 'x').kvHeadCount, 9);
  const { tie_word_embeddings: _, ...untied } = llama;
  assert.equal(parseModelConfig(untied, 'x').tieWordEmbeddings, false);

  const everything = parseModelConfig(
    { ...llama, attention_bias: true, mlp_bias: true, head_dim: 32, tie_word_embeddings: false },
    'x',
  );
  const shapes = new Map(describeParameters(everything).map(({ name, shape }) => [name, shape]));
  assert.equal(shapes.size, 30 * 16 + 3);
  assert.deepEqual(shapes.get('model.layers.29.self_attn.q_proj.weight'), [288, 576]);
  assert.deepEqual(shapes.get('model.layers.29.self_attn.k_proj.bias'), [96]);
  assert.deepEqual(shapes.get('model.layers.29.self_attn.o_proj.weight'), [576, 288]);
  assert.deepEqual(shapes.get('model.layers.29.self_attn.o_proj.bias'), [576]);
  assert.deepEqual(shapes.get('model.layers.29.mlp.down_proj.weight'), [576, 1536]);
  assert.deepEqual(shapes.get('lm_head.weight'), [49152, 576]);
  assert.equal(shapes.has('model.layers.30.input_layernorm.weight'), false);
});

const REFUSED: readonly (readonly [changes: Json, code: string, message: RegExp])[] = [
  [
    { model_type: 'mistral', architectures: ['MistralForCausalLM'] },
    'ARCHITECTURE_NOT_SUPPORTED',
    /Qwen2ForCausalLM .*or LlamaForCausalLM .*got MistralForCausalLM/,
  ],
  [{ architectures: ['LlamaForSequenceClassification'] }, 'ARCHITECTURE_NOT_SUPPORTED', /got LlamaForSequenceClass/],
  [{ model_type: undefined }, 'ARCHITECTURE_NOT_SUPPORTED', /model_type missing/],
  [{ hidden_act: 'gelu' }, 'ACTIVATION_NOT_SUPPORTED', /expected silu, got gelu/],
  [{ use_sliding_window: true, sliding_window: 4096 }, 'SLIDING_WINDOW_NOT_SUPPORTED', /sliding_window 4096/],
  [{ layer_types: ['full_attention', 'sliding_attention'] }, 'SLIDING_WINDOW_NOT_SUPPORTED', /sliding_attention/],
  [{ quantization_config: { bits: 4 } }, 'QUANTIZED_WEIGHTS_NOT_SUPPORTED', /"bits":4/],
  [{ rope_scaling: { rope_type: 'yarn', factor: 4 } }, 'ROPE_NOT_SUPPORTED', /type yarn/],
  [{ rope_scaling: { type: 'linear', factor: 4 } }, 'ROPE_NOT_SUPPORTED', /type linear/],
  [{ rope_parameters: { rope_type: 'dynamic' } }, 'ROPE_NOT_SUPPORTED', /type dynamic/],
  [{ partial_rotary_factor: 0.5 }, 'ROPE_NOT_SUPPORTED', /part of each head/],
  [{ rope_parameters: { partial_rotary_factor: 0.5 } }, 'ROPE_NOT_SUPPORTED', /part of each head/],
  [{ rope_interleaved: true }, 'ROPE_NOT_SUPPORTED', /rope_interleaved/],
  [{ use_mrope: true }, 'ROPE_NOT_SUPPORTED', /use_mrope/],
  [{ rope_scaling: 'llama3' }, 'CONFIG_VALUE_INVALID', /rope_scaling does not make sense; expected an object/],
  [
    { rope_scaling: { rope_type: 'llama3', factor: 8 } },
    'CONFIG_VALUE_INVALID',
    /rope_scaling: low_freq_factor .*nothing/,
  ],
  [
    {
      rope_scaling: {
        rope_type: 'llama3',
        factor: 8,
        low_freq_factor: 4,
        high_freq_factor: 4,
        original_max_position_embeddings: 64,
      },
    },
    'CONFIG_VALUE_INVALID',
    /high_freq_factor .*more than low_freq_factor 4/,
  ],
  [{ hidden_size: undefined }, 'CONFIG_VALUE_INVALID', /hidden_size .*whole number.*got nothing/],
  [{ hidden_size: '576' }, 'CONFIG_VALUE_INVALID', /hidden_size .*got "576"/],
  [{ hidden_size: 577 }, 'CONFIG_VALUE_INVALID', /hidden_size .*a multiple of 9 heads, got 577/],
  [{ num_hidden_layers: 0 }, 'CONFIG_VALUE_INVALID', /num_hidden_layers .*got 0/],
  [{ vocab_size: 1.5 }, 'CONFIG_VALUE_INVALID', /vocab_size/],
  [{ head_dim: 63 }, 'CONFIG_VALUE_INVALID', /head_dim .*an even number.*got 63/],
  [{ num_key_value_heads: 4 }, 'CONFIG_VALUE_INVALID', /num_key_value_heads .*a divisor of 9 heads, got 4/],
  [{ rms_norm_eps: -1e-5 }, 'CONFIG_VALUE_INVALID', /rms_norm_eps .*above 0/],
  [{ tie_word_embeddings: 'yes' }, 'CONFIG_VALUE_INVALID', /tie_word_embeddings .*true or false/],
  [{ hidden_act: 1 }, 'CONFIG_VALUE_INVALID', /hidden_act/],
  [{ eos_token_id: [2, 49152] }, 'CONFIG_VALUE_INVALID', /eos_token_id .*ids from 0 to 49151/],
  [{ bos_token_id: '<s>' }, 'CONFIG_VALUE_INVALID', /bos_token_id/],
];

test('what a config asks for and this engine does not do is refused, with the file named', async () => {
  const base = await loadConfig('smollm2-135m');
  parseModelConfig(base, 'x');
  for (const [changes, code, message] of REFUSED) {
    const what = JSON.stringify(changes);
    assert.throws(
      () => parseModelConfig({ ...base, ...changes }, 'model/config.json'),
      (error) => {
        assert.ok(isStillhouseError(error, code), `${what}: ${error}`);
        assert.match(error.message, /^model\/config\.json/);
        assert.match(error.message, message, what);
        return true;
      },
    );
  }
  const v3 = await loadConfig('deepseek-v3-r1');
  assert.throws(
    () => parseModelConfig(v3, 'x'),
    (error) => isStillhouseError(error, 'ARCHITECTURE_NOT_SUPPORTED'),
  );
});

test('what a config mentions without using it is fine', async () => {
  const base = await loadConfig('qwen2.5-0.5b-instruct');
  for (const changes of [
    { use_sliding_window: false, sliding_window: 4096 },
    { use_sliding_window: true, sliding_window: null },
    { layer_types: ['full_attention'] },
    { rope_scaling: null, rope_parameters: null, quantization_config: null },
    { architectures: undefined },
    { partial_rotary_factor: 1 },
  ]) {
    assert.equal(parseModelConfig({ ...base, ...changes }, 'x').architecture, 'qwen2', JSON.stringify(changes));
  }
});

test('ids that end a text come from both files; other special ids from config.json first', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const base = await loadConfig('qwen2.5-0.5b-instruct');
  const read = async (config: Json, generation?: Json) => {
    await writeFile(join(folder, 'config.json'), JSON.stringify({ ...base, ...config }));
    if (generation) await writeFile(join(folder, 'generation_config.json'), JSON.stringify(generation));
    const { eosTokenIds, bosTokenId, padTokenId } = await readModelConfig(folder);
    return [eosTokenIds, bosTokenId, padTokenId];
  };
  assert.deepEqual(await read({}), [[151645], 151643, undefined]);
  assert.deepEqual(await read({ eos_token_id: null, bos_token_id: null, pad_token_id: -1 }), [
    [],
    undefined,
    undefined,
  ]);
  const generation = { eos_token_id: [151645, 151643], bos_token_id: 7, pad_token_id: 8 };
  assert.deepEqual(await read({}, generation), [[151645, 151643], 151643, 8]);
  assert.deepEqual(await read({ eos_token_id: [5, 6], pad_token_id: 9 }, { eos_token_id: 6 }), [[5, 6], 151643, 9]);
  await assert.rejects(read({}, { eos_token_id: 151936 }), (error) => {
    return isStillhouseError(error, 'CONFIG_VALUE_INVALID') && /generation_config\.json/.test(error.message);
  });
});

test('a folder that is not a model is told from one whose config is broken', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const code = async (path: string) => {
    try {
      await readModelConfig(path);
    } catch (error) {
      assert.ok(isStillhouseError(error), String(error));
      assert.ok(error.report.where.startsWith(path));
      return error.code;
    }
    return 'none';
  };
  assert.equal(await code(join(folder, 'absent')), 'MODEL_FOLDER_MISSING');
  assert.equal(await code(folder), 'NOT_A_MODEL_FOLDER');
  await writeFile(join(folder, 'config.json'), '{"model_type": ');
  assert.equal(await code(folder), 'CONFIG_NOT_JSON');
  assert.equal(await code(join(folder, 'config.json')), 'NOT_A_MODEL_FOLDER');
  await writeFile(join(folder, 'config.json'), '[]');
  assert.equal(await code(folder), 'CONFIG_NOT_JSON');
  await writeFile(join(folder, 'config.json'), await readFile(join(GOLDEN, 'llama-tiny', 'config.json')));
  assert.equal(await code(folder), 'none');
  await writeFile(join(folder, 'generation_config.json'), '{');
  assert.equal(await code(folder), 'CONFIG_NOT_JSON');
});
