import { join } from 'node:path';
import { pathExists } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import type { Architecture, ModelConfig } from '../model-config.ts';
import { configValueInvalid, type Fields, type JsonObject, readFields, readJsonObject } from './json-fields.ts';
import { parseRope } from './rotary-config.ts';

const CLASS_NAMES: Readonly<Record<Architecture, string>> = { qwen2: 'Qwen2ForCausalLM', llama: 'LlamaForCausalLM' };

export const CONFIG_FILE = 'config.json';
export const GENERATION_CONFIG_FILE = 'generation_config.json';

const WANTED = 'Give a folder in Hugging Face form (config.json, model.safetensors, tokenizer files)';

/** @throws StillhouseError MODEL_FOLDER_MISSING */
export async function requireFolder(folder: string): Promise<void> {
  if (await pathExists(folder)) return;
  const problem = 'there is no such folder';
  throw new StillhouseError({ code: 'MODEL_FOLDER_MISSING', where: folder, problem, remedy: WANTED });
}

/** @throws StillhouseError MODEL_FOLDER_MISSING, NOT_A_MODEL_FOLDER */
export async function requireModelFolder(folder: string): Promise<void> {
  await requireFolder(folder);
  if (await pathExists(join(folder, CONFIG_FILE))) return;
  const problem = 'this is not a model folder: it has no config.json';
  throw new StillhouseError({ code: 'NOT_A_MODEL_FOLDER', where: folder, problem, remedy: WANTED });
}

/**
 * Reads `config.json` of a Hugging Face folder. `generation_config.json`, where there is one, adds ids that end a
 * text and names the other special ids where config.json does not.
 * @throws StillhouseError MODEL_FOLDER_MISSING, NOT_A_MODEL_FOLDER, CONFIG_NOT_JSON, and those of
 *   {@link parseModelConfig}
 */
export async function readModelConfig(folder: string): Promise<ModelConfig> {
  await requireModelFolder(folder);
  const file = join(folder, CONFIG_FILE);
  const config = parseModelConfig((await readJsonObject(file, 'CONFIG_NOT_JSON')) ?? {}, file);
  const generationFile = join(folder, GENERATION_CONFIG_FILE);
  const generation = await readJsonObject(generationFile, 'CONFIG_NOT_JSON');
  if (generation === undefined) return config;
  const ids = parseTokenIds(generation, config.vocabSize, generationFile);
  return { ...ids, ...config, eosTokenIds: [...new Set([...config.eosTokenIds, ...ids.eosTokenIds])] };
}

/**
 * Understands a `config.json`. What it asks for and this engine does not do is refused, never ignored; dropout is
 * the exception: it has no part in inference and training here goes without.
 * @param where names the file in errors
 * @throws StillhouseError ARCHITECTURE_NOT_SUPPORTED, ACTIVATION_NOT_SUPPORTED, SLIDING_WINDOW_NOT_SUPPORTED,
 *   QUANTIZED_WEIGHTS_NOT_SUPPORTED, ROPE_NOT_SUPPORTED, CONFIG_VALUE_INVALID
 */
export function parseModelConfig(json: JsonObject, where: string): ModelConfig {
  const fields = readFields(json, where);
  const architecture = parseArchitecture(json, where);
  refuseVariants(json, fields, where);
  const hiddenSize = fields.count('hidden_size');
  const headCount = fields.count('num_attention_heads');
  const vocabSize = fields.count('vocab_size');
  // Qwen2 has these fixed in its code and ignores such keys; Llama's key means q, k, v and o.
  const llamaAttentionBias = architecture === 'llama' && fields.flag('attention_bias', false);
  return {
    architecture,
    vocabSize,
    hiddenSize,
    intermediateSize: fields.count('intermediate_size'),
    layerCount: fields.count('num_hidden_layers'),
    headCount,
    kvHeadCount: parseKvHeadCount(fields, headCount, where),
    headDim: parseHeadDim(fields, hiddenSize, headCount, where),
    rmsNormEpsilon: fields.positive('rms_norm_eps', 1e-6),
    rope: parseRope(json, where),
    tieWordEmbeddings: fields.flag('tie_word_embeddings', false),
    attentionBias: architecture === 'qwen2' || llamaAttentionBias,
    attentionOutputBias: llamaAttentionBias,
    mlpBias: architecture === 'llama' && fields.flag('mlp_bias', false),
    maxPositions: fields.count('max_position_embeddings'),
    ...parseTokenIds(json, vocabSize, where),
    raw: json,
  };
}

function parseArchitecture(json: JsonObject, where: string): Architecture {
  const named = Array.isArray(json.architectures) ? json.architectures : [];
  for (const [architecture, className] of Object.entries(CLASS_NAMES) as [Architecture, string][]) {
    // transformers goes by model_type; the class tells a language model from a classifier.
    if (json.model_type === architecture && (named.length === 0 || named.includes(className))) return architecture;
  }
  throw new StillhouseError({
    code: 'ARCHITECTURE_NOT_SUPPORTED',
    where,
    problem: 'models of this architecture are not supported',
    expected: Object.entries(CLASS_NAMES)
      .map(([type, className]) => `${className} (model_type ${type})`)
      .join(' or '),
    got: `${named.join(', ') || 'no class'} (model_type ${json.model_type ?? 'missing'})`,
  });
}

function refuseVariants(json: JsonObject, fields: Fields, where: string): void {
  const activation = fields.text('hidden_act', 'silu');
  if (activation !== 'silu') {
    throw new StillhouseError({
      code: 'ACTIVATION_NOT_SUPPORTED',
      where,
      problem: 'hidden_act is not supported',
      expected: 'silu',
      got: activation,
    });
  }
  const layerTypes = Array.isArray(json.layer_types) ? json.layer_types : [];
  const otherLayer = layerTypes.find((type) => type !== 'full_attention');
  if (otherLayer !== undefined || (fields.flag('use_sliding_window', false) && fields.has('sliding_window'))) {
    throw new StillhouseError({
      code: 'SLIDING_WINDOW_NOT_SUPPORTED',
      where,
      problem: 'the model limits attention to a window, which is not supported',
      expected: 'full attention in every layer',
      got: otherLayer === undefined ? `sliding_window ${json.sliding_window}` : `a layer with ${otherLayer}`,
    });
  }
  if (fields.has('quantization_config')) {
    throw new StillhouseError({
      code: 'QUANTIZED_WEIGHTS_NOT_SUPPORTED',
      where,
      problem: 'the weights are quantized, which is not supported',
      expected: 'float32, bfloat16 or float16 weights',
      got: `quantization_config ${JSON.stringify(json.quantization_config)}`,
      remedy: 'Use the original model',
    });
  }
}

function parseKvHeadCount(fields: Fields, headCount: number, where: string): number {
  const kvHeadCount = fields.count('num_key_value_heads', headCount);
  if (headCount % kvHeadCount === 0) return kvHeadCount;
  throw configValueInvalid(where, 'num_key_value_heads', `a divisor of ${headCount} heads`, kvHeadCount);
}

function parseHeadDim(fields: Fields, hiddenSize: number, headCount: number, where: string): number {
  if (!fields.has('head_dim') && hiddenSize % headCount !== 0) {
    throw configValueInvalid(where, 'hidden_size', `a multiple of ${headCount} heads`, hiddenSize);
  }
  const headDim = fields.count('head_dim', hiddenSize / headCount);
  if (headDim % 2 === 0) return headDim;
  throw configValueInvalid(where, 'head_dim', 'an even number (rotary embedding turns pairs)', headDim);
}

type TokenIds = Pick<ModelConfig, 'bosTokenId' | 'eosTokenIds' | 'padTokenId'>;

function parseTokenIds(json: JsonObject, vocabSize: number, where: string): TokenIds {
  const list = (key: string): readonly number[] => {
    const value = json[key] ?? [];
    const ids: readonly unknown[] = Array.isArray(value) ? value : [value];
    for (const id of ids) {
      if (!Number.isSafeInteger(id) || (id as number) < 0 || (id as number) >= vocabSize) {
        throw configValueInvalid(where, key, `ids from 0 to ${vocabSize - 1}`, json[key]);
      }
    }
    return ids as readonly number[];
  };
  const [bosTokenId] = list('bos_token_id');
  // Early Llama configs write "no padding token" as -1.
  const [padTokenId] = json.pad_token_id === -1 ? [] : list('pad_token_id');
  return {
    ...(bosTokenId === undefined ? {} : { bosTokenId }),
    ...(padTokenId === undefined ? {} : { padTokenId }),
    eosTokenIds: list('eos_token_id'),
  };
}
