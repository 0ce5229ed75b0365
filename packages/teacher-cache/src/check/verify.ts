import { readdir, stat } from 'node:fs/promises';
import { join, relative } from 'node:path';
import { hashFile } from '@stillhouse/durable-files';
import { streamOutputMatrix } from '../codecs/output-matrix.ts';
import { readScale } from '../codecs/scale-file.ts';
import { shardGroups } from '../format/description.ts';
import { type CacheManifest, type ListedFile, listFiles, MANIFEST_NAME } from '../format/manifest.ts';
import { readManifest } from '../format/manifest-parser.ts';
import { listOmittedGroups, PULL_STAGING_NAME, PULLED_STATE_NAME } from '../read/pulled-state.ts';
import { PARTS_FOLDER } from '../write/build-state.ts';
import { LOCK_NAME } from '../write/builder-lock.ts';
import { EXTENSION_NAME } from '../write/cache-extension.ts';
import { collectFindings, explain, type Findings, type VerifyProblem } from './findings.ts';
import { type CheckedCache, checkShard } from './shard-checks.ts';

export interface VerifyReport {
  /** No problem was found. An incomplete cache can be without problems as far as it goes. */
  readonly ok: boolean;
  /** False too if the manifest cannot be read. */
  readonly complete: boolean;
  readonly digest: string | null;
  readonly filesChecked: number;
  readonly bytesChecked: number;
  readonly rowsChecked: number;
  readonly positionsChecked: number;
  readonly problems: readonly VerifyProblem[];
}

/** So many files are hashed ahead: of a shard or two, which the page cache still has when they are read. */
const FILES_AHEAD = 4;

/**
 * Hashes every file of a cache and checks every invariant of the format. It collects what is wrong, each with the
 * file at fault, and never throws on damage.
 */
export async function verifyCache(folder: string): Promise<VerifyReport> {
  const findings = collectFindings();
  const tally = { filesChecked: 0, bytesChecked: 0, rowsChecked: 0, positionsChecked: 0 };
  let manifest: CacheManifest;
  try {
    manifest = await readManifest(folder);
  } catch (error) {
    findings.add(MANIFEST_NAME, explain(error));
    return { ok: false, complete: false, digest: null, ...tally, problems: findings.list() };
  }
  const sound = new Set<string>();
  const omitted = await listOmittedGroups(folder, manifest);
  const files = [...listFiles(manifest)].filter(({ group }) => !omitted.has(group)).map(({ file }) => file);
  const filesPerShard = shardGroups(manifest.description).filter((group) => !omitted.has(group)).length;
  const checkNext = checkInOrder(folder, files);
  const settle = async (count: number) => {
    for (let i = 0; i < count; i++) {
      const { file, problem } = await checkNext();
      tally.filesChecked++;
      if (problem === undefined) {
        sound.add(file.path);
        tally.bytesChecked += file.sizeBytes;
      } else {
        findings.add(file.path, problem);
      }
    }
  };
  // Those of the shards come last, shard by shard.
  await settle(files.length - filesPerShard * manifest.shards.length);
  await checkStrayFiles(folder, manifest, findings);
  const cache: CheckedCache = { folder, manifest, sound, rowIds: new Map(), findings };
  await checkMatrices(cache);
  for (const shard of manifest.shards) {
    await settle(filesPerShard);
    if (!sound.has(shard.files.rows.path)) continue;
    const counts = await checkShard(cache, shard);
    tally.rowsChecked += counts.rows;
    tally.positionsChecked += counts.positions;
  }
  const problems = findings.list();
  return { ok: problems.length === 0, complete: manifest.complete, digest: manifest.digest, ...tally, problems };
}

/**
 * Checks the content of file after file, each at the call that asks for it or before: while the rows of a shard are
 * checked, the files after it are hashed on other threads, and are in the page cache when their turn comes.
 */
function checkInOrder(
  folder: string,
  files: readonly ListedFile[],
): () => Promise<{ readonly file: ListedFile; readonly problem: string | undefined }> {
  const begun: Promise<string | undefined>[] = [];
  let taken = 0;
  return async () => {
    const file = files[taken]!;
    for (const ahead of files.slice(begun.length, taken + 1 + FILES_AHEAD)) {
      begun.push(checkContent(join(folder, ahead.path), ahead));
    }
    const problem = await begun[taken];
    taken++;
    return { file, problem };
  };
}

/** @returns what is wrong with it */
async function checkContent(path: string, file: ListedFile): Promise<string | undefined> {
  try {
    const { size } = await stat(path);
    if (size !== file.sizeBytes) return `the file has ${size} bytes, expected ${file.sizeBytes}`;
    const { sha256 } = await hashFile(path);
    return sha256 === file.sha256 ? undefined : `the content has sha256 ${sha256}, expected ${file.sha256}`;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return 'the file is missing';
    return `the file cannot be read (${(error as Error).message})`;
  }
}

/** What a killed build may leave behind is no fault of a cache that is not complete. */
async function checkStrayFiles(folder: string, manifest: CacheManifest, findings: Findings): Promise<void> {
  const listed = new Set([...listFiles(manifest)].map(({ file }) => file.path));
  const names = await readdir(folder);
  const isUnfinished = !manifest.complete || names.includes(EXTENSION_NAME) || names.includes(PARTS_FOLDER);
  for (const entry of await readdir(folder, { recursive: true, withFileTypes: true })) {
    if (entry.isDirectory()) continue;
    const path = relative(folder, join(entry.parentPath, entry.name)).replaceAll('\\', '/');
    // A killed build, merge or extension leaves files that the next run removes.
    const isLeftover =
      isUnfinished &&
      (path.endsWith('.partial') || /^(shards|scales|head|tokenizer|parts)\//.test(path) || path === EXTENSION_NAME);
    if (listed.has(path) || path === MANIFEST_NAME || path === LOCK_NAME || isLeftover) continue;
    if (path === PULLED_STATE_NAME || path.startsWith(`${PULL_STAGING_NAME}/`)) continue;
    findings.add(path, 'the file does not belong to the cache');
  }
}

async function checkMatrices({ folder, manifest, sound, findings }: CheckedCache): Promise<void> {
  for (const { path } of manifest.scales) {
    if (!sound.has(path)) continue;
    await readScale(join(folder, path), manifest.description).catch((error: unknown) =>
      findings.add(path, explain(error)),
    );
  }
  const matrix = manifest.outputMatrix;
  if (matrix === null || !sound.has(matrix.path)) return;
  const exponent = { bfloat16: 0x7f80, float16: 0x7c00, float32: 0 }[matrix.dtype];
  try {
    for await (const { firstRow, values } of streamOutputMatrix(join(folder, matrix.path), matrix)) {
      const bad =
        values instanceof Float32Array
          ? values.findIndex((value) => !Number.isFinite(value))
          : values.findIndex((bits) => (bits & exponent) === exponent);
      if (bad >= 0) findings.add(matrix.path, `row ${firstRow + Math.floor(bad / matrix.columns)} is not finite`);
    }
  } catch (error) {
    findings.add(matrix.path, explain(error));
  }
}
