import { join } from 'node:path';
import { pathExists } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import {
  createSafetensorsSource,
  type LocatedTensor,
  openTensorFile,
  type SafetensorsSource,
  type TensorFile,
} from '../formats/safetensors/safetensors-source.ts';
import { isJsonObject, readJsonObject } from './json-fields.ts';

export const WEIGHT_FILE = 'model.safetensors';
export const WEIGHT_INDEX_FILE = 'model.safetensors.index.json';

/** Which files a folder's weights lie in. */
export interface WeightFiles {
  /** Names inside the folder, sorted. */
  readonly files: readonly string[];
  /** Of a sharded set: the file of each tensor, by name. */
  readonly shardOfTensor?: ReadonlyMap<string, string>;
}

/**
 * Finds `model.safetensors`, or the shards that `model.safetensors.index.json` names; as transformers, the former
 * first.
 * @throws StillhouseError WEIGHTS_MISSING, WEIGHT_INDEX_INVALID, WEIGHT_INDEX_ESCAPES_FOLDER, WEIGHT_SHARD_MISSING
 */
export async function findWeightFiles(folder: string): Promise<WeightFiles> {
  if (await pathExists(join(folder, WEIGHT_FILE))) return { files: [WEIGHT_FILE] };
  const indexFile = join(folder, WEIGHT_INDEX_FILE);
  const index = await readJsonObject(indexFile, 'WEIGHT_INDEX_INVALID');
  if (index === undefined) {
    throw new StillhouseError({
      code: 'WEIGHTS_MISSING',
      where: folder,
      problem: 'the folder has no weights',
      expected: `${WEIGHT_FILE} or ${WEIGHT_INDEX_FILE}`,
      remedy: 'Weights in other formats (pytorch_model.bin, gguf) are not read: convert them to safetensors',
    });
  }
  const map = index.weight_map;
  const entries = isJsonObject(map) ? Object.entries(map) : [];
  if (entries.length === 0 || !entries.every(([, file]) => typeof file === 'string')) {
    throw new StillhouseError({
      code: 'WEIGHT_INDEX_INVALID',
      where: indexFile,
      problem: 'there is no usable weight_map',
      expected: 'an object from tensor names to file names',
    });
  }
  const shardOfTensor = new Map(entries as [string, string][]);
  const files = [...new Set(shardOfTensor.values())].sort();
  for (const file of files) await requireShard(folder, indexFile, file);
  return { files, shardOfTensor };
}

async function requireShard(folder: string, indexFile: string, file: string): Promise<void> {
  if (file === '' || file === '.' || file === '..' || /[/\\\0]/.test(file)) {
    throw new StillhouseError({
      code: 'WEIGHT_INDEX_ESCAPES_FOLDER',
      where: indexFile,
      problem: 'the index names a file outside of its folder',
      expected: 'plain file names',
      got: JSON.stringify(file),
    });
  }
  if (await pathExists(join(folder, file))) return;
  throw new StillhouseError({
    code: 'WEIGHT_SHARD_MISSING',
    where: indexFile,
    problem: `the index names ${file}, which is not there`,
    remedy: 'Fetch the missing file',
  });
}

/**
 * Opens the tensors of a Hugging Face folder, whole or sharded, whatever model they are of. Links, as in the hub's
 * cache, are followed: a tensor's file is always the real one.
 * @throws StillhouseError of {@link findWeightFiles} and `openSafetensors`, and WEIGHT_INDEX_TENSOR_MISSING when a
 *   shard lacks a tensor that the index promises
 */
export async function openWeightFiles(folder: string): Promise<SafetensorsSource> {
  const { files, shardOfTensor } = await findWeightFiles(folder);
  const opened = new Map<string, TensorFile>();
  try {
    for (const file of files) opened.set(file, await openTensorFile(join(folder, file)));
    const handles = [...opened.values()].map(({ handle }) => handle);
    return createSafetensorsSource(folder, locateTensors(folder, opened, shardOfTensor), handles);
  } catch (error) {
    for (const { handle } of opened.values()) await handle.close();
    throw error;
  }
}

function locateTensors(
  folder: string,
  opened: ReadonlyMap<string, TensorFile>,
  shardOfTensor: ReadonlyMap<string, string> | undefined,
): readonly LocatedTensor[] {
  const all = [...opened].flatMap(([file, { tensors, handle }]) => tensors.map((info) => ({ file, info, handle })));
  if (shardOfTensor === undefined) return all;
  // The index decides: a tensor that a shard holds but the index gives to another shard or to none is not the model's.
  const listed = all.filter(({ file, info }) => shardOfTensor.get(info.name) === file);
  const found = new Set(listed.map(({ info }) => info.name));
  for (const [name, file] of shardOfTensor) {
    if (found.has(name)) continue;
    throw new StillhouseError({
      code: 'WEIGHT_INDEX_TENSOR_MISSING',
      where: join(folder, file),
      problem: `there is no tensor ${name}, which ${WEIGHT_INDEX_FILE} says is here`,
      remedy: 'Index and files are of different models or a file is damaged: fetch them again',
    });
  }
  return listed;
}
