import { randomUUID } from 'node:crypto';
import { link, open, readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { explainWriteFailure, readTextIfThere, writeFileAtomically } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import type { CacheDescription } from '../format/description.ts';
import { type ManifestBody, sealBody } from '../format/manifest.ts';
import { openSealed, readBody } from '../format/manifest-parser.ts';
import { findShardIndex } from '../format/shard-layout.ts';
import { PARTS_FOLDER, requireSameDescription } from './build-state.ts';

/** One of several disjoint parts of a build. */
export interface Partition {
  /** From 1 to `count`. */
  readonly index: number;
  readonly count: number;
}

/** What a part holds so far: a manifest with its shards only. */
export interface PartManifest extends ManifestBody {
  readonly partition: Partition;
  readonly digest: string;
}

const PLAN_FORMAT = 'stillhouse-teacher-cache-parts';
const PART_FORMAT = 'stillhouse-teacher-cache-part';
const PLAN_PATH = `${PARTS_FOLDER}/plan.json`;

export const printPartition = ({ index, count }: Partition) => `${index}/${count}`;
const partName = ({ index, count }: Partition) => `${index}-of-${count}`;
const partPath = (partition: Partition) => `${PARTS_FOLDER}/${partName(partition)}.json`;
/** A part's lock, beside its manifest. */
export const partLockName = (partition: Partition) => `${PARTS_FOLDER}/${partName(partition)}.lock`;

/** The shards of a part: every n-th, so that parts are alike where rows grow longer through the data. */
export const isInPartition = (shard: number, { index, count }: Partition) => shard % count === index - 1;

/** @throws StillhouseError CACHE_PARTITION_INVALID */
export function requirePartition(partition: Partition, where: string): void {
  const { index, count } = partition;
  if (Number.isSafeInteger(index) && Number.isSafeInteger(count) && index >= 1 && index <= count) return;
  throw new StillhouseError({
    code: 'CACHE_PARTITION_INVALID',
    where,
    problem: 'there is no such part',
    expected: 'i/n with i from 1 to n',
    got: printPartition(partition),
  });
}

export const emptyBody = (description: CacheDescription, planned: number): ManifestBody => ({
  complete: false,
  rows: { planned, stored: 0 },
  description,
  tokenizer: [],
  outputMatrix: null,
  scales: [],
  shards: [],
  provenance: [],
});

/**
 * Fixes for all builders of a folder how many parts there are and of what cache: the first one's word counts.
 * @throws StillhouseError CACHE_PARTS_DISAGREE, CACHE_CONFIG_MISMATCH
 */
export async function agreeOnPlan(
  folder: string,
  description: CacheDescription,
  planned: number,
  { count }: Partition,
): Promise<void> {
  const path = join(folder, PLAN_PATH);
  const own = `${path}.${randomUUID()}`;
  await writeFileAtomically(own, sealBody(PLAN_FORMAT, { partitions: count }, emptyBody(description, planned)));
  try {
    // Exclusive, and whole from the first moment: of two builders one finds the other's.
    await link(own, path).catch(async (error: NodeJS.ErrnoException) => {
      if (error.code === 'EEXIST') return;
      if (!['EPERM', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS'].includes(error.code ?? '')) throw error;
      await writeExclusively(path, await readFile(own));
    });
  } catch (error) {
    throw explainWriteFailure(path, error);
  } finally {
    await rm(own, { force: true });
  }
  const plan = await readPlan(folder);
  if (plan === undefined) throw new Error(`${path} was removed while a part was begun`);
  if (plan.count !== count) {
    throw new StillhouseError({
      code: 'CACHE_PARTS_DISAGREE',
      where: path,
      problem: 'the cache is built in another number of parts',
      expected: `--partition i/${plan.count}`,
      got: `--partition i/${count}`,
      remedy: 'Give the same number of parts to all builders, or choose another folder',
    });
  }
  requireSameDescription(path, plan.body, { description, rows: { planned } });
}

/** For file systems without hard links: created by one builder only, which a reader may see before it is whole. */
async function writeExclusively(path: string, content: Uint8Array): Promise<void> {
  const handle = await open(path, 'wx').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'EEXIST') return undefined;
    throw error;
  });
  await handle?.writeFile(content);
  await handle?.sync();
  await handle?.close();
}

/** How many parts the cache in a folder is built in; undefined if it is not. */
export async function readPlan(
  folder: string,
): Promise<{ readonly count: number; readonly body: ManifestBody } | undefined> {
  const path = join(folder, PLAN_PATH);
  const content = await readTextIfThere(path);
  if (content === undefined) return undefined;
  const sealed = openSealed(content, path, PLAN_FORMAT);
  return {
    count: sealed.reader.count(sealed.root.partitions, 'partitions'),
    body: readBody(sealed, path, () => undefined),
  };
}

export async function writePart(folder: string, partition: Partition, body: ManifestBody): Promise<void> {
  const { index, count } = partition;
  await writeFileAtomically(
    join(folder, partPath(partition)),
    sealBody(PART_FORMAT, { partition: { index, count } }, body),
  );
}

/** @returns undefined where the part was not begun */
export async function readPart(folder: string, partition: Partition): Promise<PartManifest | undefined> {
  const path = join(folder, partPath(partition));
  const content = await readTextIfThere(path);
  if (content === undefined) return undefined;
  const sealed = openSealed(content, path, PART_FORMAT);
  const { reader, root } = sealed;
  const said = reader.object(root.partition, 'partition');
  if (said.index !== partition.index || said.count !== partition.count) {
    reader.fail('partition', printPartition(partition), said);
  }
  const body = readBody(sealed, path, (_, firstRow, description, planned) => {
    const shard = findShardIndex(description, planned, firstRow);
    return shard !== undefined && isInPartition(shard, partition) ? shard : undefined;
  });
  return { ...body, partition, digest: sealed.digest };
}

/** The parts that have left something in a folder. */
export async function listParts(folder: string): Promise<readonly Partition[]> {
  const names = await readdir(join(folder, PARTS_FOLDER)).catch(() => []);
  return names.flatMap((name) => {
    const match = /^([1-9]\d*)-of-([1-9]\d*)\.json$/.exec(name);
    return match === null ? [] : [{ index: Number(match[1]), count: Number(match[2]) }];
  });
}
