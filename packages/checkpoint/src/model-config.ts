import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { StillhouseError } from '@stillhouse/errors';

export type Architecture = 'qwen2' | 'llama';

/** Llama 3's rescaling of rotary frequencies. */
export interface Llama3RopeScaling {
  readonly kind: 'llama3';
  readonly factor: number;
  readonly lowFrequencyFactor: number;
  readonly highFrequencyFactor: number;
  readonly originalMaxPositions: number;
}

/** A decoder's shape, read from a Hugging Face config.json. */
export interface ModelConfig {
  readonly architecture: Architecture;
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly layerCount: number;
  readonly headCount: number;
  readonly kvHeadCount: number;
  readonly headDim: number;
  readonly rmsNormEpsilon: number;
  readonly rope: { readonly theta: number; readonly scaling?: Llama3RopeScaling };
  readonly tieWordEmbeddings: boolean;
  /** Whether the query, key and value projections have biases. */
  readonly attentionBias: boolean;
  readonly attentionOutputBias: boolean;
  readonly mlpBias: boolean;
  /** Longest sequence the model was made for. */
  readonly maxPositions: number;
  readonly bosTokenId?: number;
  /** Ids that end a text; from config.json and, when read from a folder, generation_config.json. */
  readonly eosTokenIds: readonly number[];
  readonly padTokenId?: number;
  /** config.json as it stands. */
  readonly raw: Readonly<Record<string, unknown>>;
}

const ARCHITECTURES: Readonly<Record<string, Architecture>> = { Qwen2ForCausalLM: 'qwen2', LlamaForCausalLM: 'llama' };

type Json = Readonly<Record<string, unknown>>;

function unsupported(where: string, what: string, expected: string, got: unknown): never {
  throw new StillhouseError({
    code: 'ARCHITECTURE_UNSUPPORTED',
    where,
    problem: `${what} is not supported`,
    expected,
    got: JSON.stringify(got) ?? 'nothing',
    remedy: 'Use a Qwen2 or Llama model',
  });
}

/**
 * Checks a parsed config.json. Anything that would compute differently and is not supported is refused.
 * @param where named in errors: the file
 * @throws StillhouseError ARCHITECTURE_UNSUPPORTED, MODEL_CONFIG_INVALID
 */
export function parseModelConfig(json: Json, where: string): ModelConfig {
  const architecture = findArchitecture(json, where);
  const number = (key: string, fallback?: number): number => {
    const value = json[key] ?? fallback;
    if (typeof value === 'number' && Number.isFinite(value) && value > 0) return value;
    throw new StillhouseError({
      code: 'MODEL_CONFIG_INVALID',
      where,
      problem: `${key} is not a number above 0`,
      got: JSON.stringify(json[key]) ?? 'nothing',
      remedy: 'Fetch config.json again',
    });
  };
  const integer = (key: string, fallback?: number): number => {
    const value = number(key, fallback);
    if (Number.isSafeInteger(value)) return value;
    throw new StillhouseError({
      code: 'MODEL_CONFIG_INVALID',
      where,
      problem: `${key} is not a whole number`,
      got: String(value),
      remedy: 'Fetch config.json again',
    });
  };
  refuseWhatComputesOtherwise(json, where);
  const hiddenSize = integer('hidden_size');
  const headCount = integer('num_attention_heads');
  const kvHeadCount = integer('num_key_value_heads', headCount);
  const headDim = integer('head_dim', hiddenSize / headCount);
  if (headCount % kvHeadCount !== 0 || headDim % 2 !== 0) {
    throw new StillhouseError({
      code: 'MODEL_CONFIG_INVALID',
      where,
      problem: 'heads do not divide',
      expected: 'query heads in equal groups per KV head and an even head width',
      got: `${headCount} heads, ${kvHeadCount} KV heads, width ${headDim}`,
      remedy: 'Fetch config.json again',
    });
  }
  const optionalId = (key: string) => (typeof json[key] === 'number' ? (json[key] as number) : undefined);
  const bosTokenId = optionalId('bos_token_id');
  const padTokenId = optionalId('pad_token_id');
  return {
    architecture,
    vocabSize: integer('vocab_size'),
    hiddenSize,
    intermediateSize: integer('intermediate_size'),
    layerCount: integer('num_hidden_layers'),
    headCount,
    kvHeadCount,
    headDim,
    rmsNormEpsilon: number('rms_norm_eps', 1e-6),
    rope: readRope(json, where),
    tieWordEmbeddings: json.tie_word_embeddings === true,
    attentionBias: architecture === 'qwen2' || json.attention_bias === true,
    attentionOutputBias: architecture === 'llama' && json.attention_bias === true,
    mlpBias: architecture === 'llama' && json.mlp_bias === true,
    maxPositions: integer('max_position_embeddings'),
    ...(bosTokenId === undefined ? {} : { bosTokenId }),
    eosTokenIds: idList(json.eos_token_id),
    ...(padTokenId === undefined ? {} : { padTokenId }),
    raw: json,
  };
}

function findArchitecture(json: Json, where: string): Architecture {
  const named = Array.isArray(json.architectures) ? (json.architectures as unknown[]).map(String) : [];
  const byName = named.map((name) => ARCHITECTURES[name]).find((one) => one !== undefined);
  const byType =
    named.length === 0 && (json.model_type === 'qwen2' || json.model_type === 'llama') ? json.model_type : undefined;
  return (
    byName ??
    byType ??
    unsupported(
      where,
      'the architecture',
      Object.keys(ARCHITECTURES).join(' or '),
      named.length === 0 ? json.model_type : named.join(', '),
    )
  );
}

function refuseWhatComputesOtherwise(json: Json, where: string): void {
  const activation = json.hidden_act ?? 'silu';
  if (activation !== 'silu') unsupported(where, 'the activation', 'silu', activation);
  if (json.use_sliding_window === true && typeof json.sliding_window === 'number')
    unsupported(where, 'sliding-window attention', 'use_sliding_window false', true);
  if (json.quantization_config !== undefined && json.quantization_config !== null)
    unsupported(where, 'a quantised checkpoint', 'bfloat16, float16 or float32 weights', json.quantization_config);
}

function readRope(json: Json, where: string): ModelConfig['rope'] {
  // transformers 5 writes rope_parameters; before that rope_theta and rope_scaling stood apart.
  const parameters = (json.rope_parameters ?? json.rope_scaling ?? {}) as Json;
  const theta = Number(parameters.rope_theta ?? json.rope_theta ?? 10000);
  const kind = parameters.rope_type ?? parameters.type ?? 'default';
  if (kind === 'default') return { theta };
  if (kind !== 'llama3') unsupported(where, 'the rotary embedding', 'rope type default or llama3', kind);
  return {
    theta,
    scaling: {
      kind: 'llama3',
      factor: Number(parameters.factor),
      lowFrequencyFactor: Number(parameters.low_freq_factor),
      highFrequencyFactor: Number(parameters.high_freq_factor),
      originalMaxPositions: Number(parameters.original_max_position_embeddings),
    },
  };
}

function idList(value: unknown): readonly number[] {
  return (Array.isArray(value) ? value : [value]).filter((id): id is number => typeof id === 'number');
}

async function readJson(file: string): Promise<Json | undefined> {
  const text = await readFile(file, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT' || error.code === 'ENOTDIR') return undefined;
    throw error;
  });
  if (text === undefined) return undefined;
  try {
    return JSON.parse(text) as Json;
  } catch (cause) {
    throw new StillhouseError({
      code: 'MODEL_CONFIG_INVALID',
      where: file,
      problem: 'the file is not JSON',
      remedy: 'Fetch it again',
      cause,
    });
  }
}

/**
 * Reads config.json of a Hugging Face folder, and the end-of-text ids that generation_config.json adds.
 * @throws StillhouseError MODEL_FOLDER_MISSING, NOT_A_MODEL_FOLDER, ARCHITECTURE_UNSUPPORTED, MODEL_CONFIG_INVALID
 */
export async function readModelConfig(folder: string): Promise<ModelConfig> {
  const info = await stat(folder).catch(() => undefined);
  if (info === undefined) {
    throw new StillhouseError({
      code: 'MODEL_FOLDER_MISSING',
      where: folder,
      problem: 'there is no such folder',
      remedy: 'Give the folder of a Hugging Face model',
    });
  }
  const file = join(folder, 'config.json');
  const json = info.isDirectory() ? await readJson(file) : undefined;
  if (json === undefined) {
    throw new StillhouseError({
      code: 'NOT_A_MODEL_FOLDER',
      where: folder,
      problem: 'this is not a model folder',
      expected: 'a folder with config.json and model.safetensors',
      remedy: 'Give the folder of a Hugging Face model',
    });
  }
  const config = parseModelConfig(json, file);
  const generation = await readJson(join(folder, 'generation_config.json'));
  return { ...config, eosTokenIds: [...new Set([...config.eosTokenIds, ...idList(generation?.eos_token_id)])] };
}
