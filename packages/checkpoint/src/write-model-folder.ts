import { copyFile, mkdir, readdir, realpath, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { explainWriteFailure, stageDirectory, syncDirectory, writeFileAtomically } from '@stillhouse/durable-files';
import type { ParameterSpec } from './parameters.ts';
import { countElements, elementBytes } from './stored-dtype.ts';
import { writeSafetensors } from './write-safetensors.ts';

export interface ModelToWrite {
  readonly out: string;
  /** config.json to write; its dtype entry is set to that of the weights. */
  readonly config: Readonly<Record<string, unknown>>;
  readonly parameters: readonly ParameterSpec[];
  /** The elements of a parameter. */
  readonly read: (name: string) => Promise<Float32Array>;
  readonly dtype: 'float32' | 'bfloat16' | 'float16';
  /** A model folder whose tokenizer and generation settings are copied along. */
  readonly carryFrom?: string;
  /** Above this the weights are split over several files with an index. Default 5 GB, as transformers does. */
  readonly shardSizeBytes?: number;
}

/** Files of a model folder that are about text and not about weights. */
const CARRIED =
  /^(tokenizer.*|vocab\.(json|txt)|merges\.txt|special_tokens_map\.json|added_tokens\.json|chat_template.*|generation_config\.json)$/;

/**
 * Writes a Hugging Face folder that `transformers` loads. Files are prepared beside `out` and moved in at the end,
 * config.json last, so that a run that was cut short leaves no folder that looks like a model. What else stands in
 * `out` stays.
 * @throws StillhouseError DISK_FULL, NOT_WRITABLE
 */
export async function writeModelFolder(model: ModelToWrite): Promise<void> {
  const { out, config, dtype, carryFrom } = model;
  const staged = await stageDirectory(out);
  try {
    await writeWeights(staged, model);
    if (carryFrom !== undefined) {
      for (const name of await readdir(carryFrom)) {
        if (CARRIED.test(name)) await copyFile(await realpath(join(carryFrom, name)), join(staged, name));
      }
    }
    const dtypeKey = 'dtype' in config ? 'dtype' : 'torch_dtype';
    await writeFileAtomically(
      join(staged, 'config.json'),
      `${JSON.stringify({ ...config, [dtypeKey]: dtype }, null, 2)}\n`,
    );
    await mkdir(out, { recursive: true });
    const names = (await readdir(staged)).filter((name) => name !== 'config.json');
    for (const name of [...names, 'config.json']) await rename(join(staged, name), join(out, name));
    await syncDirectory(out);
  } catch (cause) {
    throw explainWriteFailure(out, cause);
  } finally {
    await rm(staged, { recursive: true, force: true });
  }
}

async function writeWeights(
  folder: string,
  { parameters, dtype, read, shardSizeBytes = 5e9 }: ModelToWrite,
): Promise<void> {
  const sizeOf = ({ shape }: ParameterSpec) => countElements(shape) * elementBytes(dtype);
  const shards: ParameterSpec[][] = [];
  let filled = Number.POSITIVE_INFINITY;
  for (const parameter of parameters) {
    if (filled + sizeOf(parameter) > shardSizeBytes) {
      shards.push([]);
      filled = 0;
    }
    shards.at(-1)!.push(parameter);
    filled += sizeOf(parameter);
  }
  const fileOf = (shard: number) => {
    if (shards.length === 1) return 'model.safetensors';
    const five = (n: number) => String(n).padStart(5, '0');
    return `model-${five(shard + 1)}-of-${five(shards.length)}.safetensors`;
  };
  for (const [shard, specs] of shards.entries()) {
    await writeSafetensors(
      join(folder, fileOf(shard)),
      specs.map(({ name, shape }) => ({ name, shape, dtype })),
      read,
    );
  }
  if (shards.length === 1) return;
  const index = {
    metadata: { total_size: parameters.reduce((sum, parameter) => sum + sizeOf(parameter), 0) },
    weight_map: Object.fromEntries(shards.flatMap((specs, shard) => specs.map(({ name }) => [name, fileOf(shard)]))),
  };
  await writeFileAtomically(join(folder, 'model.safetensors.index.json'), `${JSON.stringify(index, null, 2)}\n`);
}
