import { readdir, readFile, rename, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import {
  explainWriteFailure,
  pathExists,
  publishDirectory,
  stageDirectory,
  syncDirectory,
  writeFileAtomically,
} from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import { countElements, formatShape } from '@stillhouse/tensor-types';
import { assertFinite } from '../finite-weights.ts';
import { elementBytes } from '../formats/safetensors/stored-dtype.ts';
import { writeSafetensors } from '../formats/safetensors/write-safetensors.ts';
import { describeParameters, type ParameterSpec } from '../parameters.ts';
import { CONFIG_FILE, GENERATION_CONFIG_FILE, parseModelConfig, requireFolder } from './config-file.ts';
import type { JsonObject } from './json-fields.ts';
import { WEIGHT_FILE, WEIGHT_INDEX_FILE } from './weight-files.ts';

export interface ModelToWrite {
  readonly out: string;
  /** config.json to write; its dtype entry is set to that of the weights. */
  readonly config: JsonObject;
  /** The tensors that `config` asks for, in the order in which they are to be read and written. */
  readonly parameters: readonly ParameterSpec[];
  /** The elements of a parameter. */
  readonly read: (name: string) => Promise<Float32Array>;
  readonly dtype: 'float32' | 'bfloat16' | 'float16';
  /** A folder whose tokenizer, generation settings and licence are copied along. */
  readonly carryFrom?: string;
  /** Above this the weights are split over several files with an index. Default 5 GB, as transformers had it. */
  readonly shardSizeBytes?: number;
}

const DEFAULT_SHARD_BYTES = 5e9;

/** Files of a model folder that are not made from weights and shape. */
const CARRIED =
  /^(tokenizer.*|vocab\.(json|txt)|merges\.txt|special_tokens_map\.json|added_tokens\.json|chat_template.*|generation_config\.json|LICENSE.*|NOTICE.*)$/;

const WEIGHTS = /^model(-\d+-of-\d+)?\.safetensors(\.index\.json)?$/;

/**
 * Writes a Hugging Face folder that `transformers` loads. Everything is prepared beside `out` and moved in at the end,
 * config.json last, so that a run that was cut short leaves no folder that looks like a model. A model that stood in
 * `out` is replaced; other files there stay.
 * @throws StillhouseError PARAMETERS_MISMATCH, OUTPUT_NOT_A_FOLDER, MODEL_FOLDER_MISSING, WEIGHT_NOT_FINITE, and those
 *   of `parseModelConfig` and `writeSafetensors`
 */
export async function writeModelFolder(model: ModelToWrite): Promise<void> {
  const { out, carryFrom } = model;
  requireParameters(model);
  await requireFolderOrNothing(out);
  if (carryFrom !== undefined) await requireFolder(carryFrom);
  const staged = await stageDirectory(out);
  try {
    await writeWeights(staged, model);
    if (carryFrom !== undefined) await carryFiles(carryFrom, staged);
    await writeConfigs(staged, model);
    await publish(staged, out);
  } catch (cause) {
    throw explainWriteFailure(out, cause);
  } finally {
    await rm(staged, { recursive: true, force: true });
  }
}

function requireParameters({ out, config, parameters }: ModelToWrite): void {
  const write = ({ name, shape }: ParameterSpec) => `${name} ${formatShape(shape)}`;
  const given = parameters.map(write).sort();
  const needed = describeParameters(parseModelConfig(config, join(out, CONFIG_FILE)))
    .map(write)
    .sort();
  const at = needed.findIndex((parameter, i) => parameter !== given[i]);
  if (at === -1 && given.length === needed.length) return;
  throw new StillhouseError({
    code: 'PARAMETERS_MISMATCH',
    where: out,
    problem: 'the weights to be written are not those that the config asks for',
    expected: needed[at] ?? 'no further tensor',
    got: given[at === -1 ? needed.length : at] ?? 'no further tensor',
  });
}

async function requireFolderOrNothing(out: string): Promise<void> {
  const found = await stat(out).catch(() => undefined);
  if (found === undefined || found.isDirectory()) return;
  throw new StillhouseError({
    code: 'OUTPUT_NOT_A_FOLDER',
    where: out,
    problem: 'a file stands where the model folder is to be',
    remedy: 'Choose another --out',
  });
}

async function writeWeights(folder: string, model: ModelToWrite): Promise<void> {
  const { parameters, dtype, read, shardSizeBytes = DEFAULT_SHARD_BYTES } = model;
  const sizeOf = ({ shape }: ParameterSpec) => countElements(shape) * elementBytes(dtype);
  const shards: ParameterSpec[][] = [[]];
  let filledBytes = 0;
  for (const parameter of parameters) {
    if (filledBytes > 0 && filledBytes + sizeOf(parameter) > shardSizeBytes) {
      shards.push([]);
      filledBytes = 0;
    }
    shards.at(-1)!.push(parameter);
    filledBytes += sizeOf(parameter);
  }
  const fiveDigits = (n: number) => String(n).padStart(5, '0');
  const fileOf = (shard: number) =>
    shards.length === 1 ? WEIGHT_FILE : `model-${fiveDigits(shard + 1)}-of-${fiveDigits(shards.length)}.safetensors`;
  for (const [shard, specs] of shards.entries()) {
    const path = join(folder, fileOf(shard));
    const tensors = specs.map(({ name, shape }) => ({ name, shape, dtype }));
    await writeSafetensors(path, tensors, async (name) => {
      const values = await read(name);
      assertFinite(name, values, model.out);
      return values;
    });
  }
  if (shards.length === 1) return;
  const index = {
    metadata: {
      total_parameters: parameters.reduce((sum, { shape }) => sum + countElements(shape), 0),
      total_size: parameters.reduce((sum, parameter) => sum + sizeOf(parameter), 0),
    },
    weight_map: Object.fromEntries(shards.flatMap((specs, shard) => specs.map(({ name }) => [name, fileOf(shard)]))),
  };
  await writeJson(join(folder, WEIGHT_INDEX_FILE), index);
}

async function carryFiles(from: string, to: string): Promise<void> {
  const names = (await readdir(from)).filter((name) => CARRIED.test(name));
  for (const name of names) {
    const path = join(from, name);
    if ((await stat(path)).isFile()) await writeFileAtomically(join(to, name), await readFile(path));
  }
}

async function writeConfigs(folder: string, { config, dtype, out }: ModelToWrite): Promise<void> {
  if (!(await pathExists(join(folder, GENERATION_CONFIG_FILE)))) {
    const { bosTokenId, eosTokenIds, padTokenId } = parseModelConfig(config, join(out, CONFIG_FILE));
    await writeJson(join(folder, GENERATION_CONFIG_FILE), {
      _from_model_config: true,
      bos_token_id: bosTokenId,
      eos_token_id: eosTokenIds.length === 1 ? eosTokenIds[0] : eosTokenIds.length === 0 ? undefined : eosTokenIds,
      pad_token_id: padTokenId,
    });
  }
  // transformers 5 says dtype, and still reads what came before.
  const dtypeKey = 'dtype' in config ? 'dtype' : 'torch_dtype';
  await writeJson(join(folder, CONFIG_FILE), { ...config, [dtypeKey]: dtype });
}

const writeJson = (path: string, value: object) => writeFileAtomically(path, `${JSON.stringify(value, null, 2)}\n`);

async function publish(staged: string, out: string): Promise<void> {
  if (!(await pathExists(out))) return publishDirectory(staged, out);
  // From here to the last rename `out` is no model: better that than a model of two halves.
  await rm(join(out, CONFIG_FILE), { force: true });
  await syncDirectory(out);
  const names = (await readdir(staged)).filter((name) => name !== CONFIG_FILE);
  for (const name of await readdir(out)) {
    if ((WEIGHTS.test(name) || CARRIED.test(name)) && !names.includes(name)) await rm(join(out, name));
  }
  for (const name of names) await rename(join(staged, name), join(out, name));
  await syncDirectory(out);
  await rename(join(staged, CONFIG_FILE), join(out, CONFIG_FILE));
  await syncDirectory(out);
}
