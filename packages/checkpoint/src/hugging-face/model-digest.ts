import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { type FileDigest, hashFile, pathExists } from '@stillhouse/durable-files';
import { CONFIG_FILE, GENERATION_CONFIG_FILE, requireModelFolder } from './config-file.ts';
import { findWeightFiles, WEIGHT_INDEX_FILE } from './weight-files.ts';

export interface ModelFileDigest extends FileDigest {
  /** Name inside the folder. */
  readonly path: string;
}

export interface ModelDigest {
  /** sha256 over one line `name sha256` for each weight file, and the index of a sharded set, sorted by name. */
  readonly weightsSha256: string;
  /** sha256 of config.json. */
  readonly configSha256: string;
  /** Everything that decides what the model computes and when it stops, sorted by name. */
  readonly files: readonly ModelFileDigest[];
}

/**
 * Digests that tell two models apart; where the folder lies and whether its files are links makes no difference.
 * @throws StillhouseError of `openModelWeights` about missing files
 */
export async function digestModel(folder: string): Promise<ModelDigest> {
  await requireModelFolder(folder);
  const { files, shardOfTensor } = await findWeightFiles(folder);
  const weightNames = [...files, ...(shardOfTensor === undefined ? [] : [WEIGHT_INDEX_FILE])].sort();
  const weights: ModelFileDigest[] = [];
  for (const name of weightNames) weights.push(await hashModelFile(folder, name));
  const hasGeneration = await pathExists(join(folder, GENERATION_CONFIG_FILE));
  const config = await hashModelFile(folder, CONFIG_FILE);
  const generation = hasGeneration ? [await hashModelFile(folder, GENERATION_CONFIG_FILE)] : [];
  const lines = weights.map(({ path, sha256 }) => `${path} ${sha256}\n`).join('');
  return {
    weightsSha256: createHash('sha256').update(lines).digest('hex'),
    configSha256: config.sha256,
    files: [config, ...generation, ...weights].sort((a, b) => (a.path < b.path ? -1 : 1)),
  };
}

async function hashModelFile(folder: string, path: string): Promise<ModelFileDigest> {
  return { path, ...(await hashFile(join(folder, path))) };
}
