import { readdir, stat } from 'node:fs/promises';
import { join, relative } from 'node:path';
import { hashFile } from '@stillhouse/durable-files';
import { isStillhouseError } from '@stillhouse/errors';
import { decodeRow, openHiddenDecoder, openSampledDecoder, openTopKDecoder } from '../codecs/arrow-decoding.ts';
import { type ArrowBatch, type ArrowFile, openArrowFile } from '../codecs/arrow-file-reader.ts';
import { streamOutputMatrix } from '../codecs/output-matrix.ts';
import { readScale } from '../codecs/scale-file.ts';
import { loadZstd } from '../codecs/zstd.ts';
import { shardSchema } from '../format/arrow-schemas.ts';
import { contentGroup, hiddenGroup, type ShardContent, shardGroups } from '../format/description.ts';
import { type CachedRow, labelPositions, targetsOf } from '../format/labelled-row.ts';
import { type CacheManifest, type ListedFile, type ListedShard, listFiles, MANIFEST_NAME } from '../format/manifest.ts';
import { readManifest } from '../format/manifest-parser.ts';
import { listOmittedGroups, PULL_STAGING_NAME, PULLED_STATE_NAME } from '../read/pulled-state.ts';
import { PARTS_FOLDER } from '../write/build-state.ts';
import { LOCK_NAME } from '../write/builder-lock.ts';
import { EXTENSION_NAME } from '../write/cache-extension.ts';
import { checkSampled, checkTopK } from './distribution-checks.ts';
import { checkHidden, checkRow } from './row-checks.ts';

export interface VerifyProblem {
  /** Relative to the cache. */
  readonly file: string;
  readonly problem: string;
}

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

/** More would bury the other files. */
const PROBLEMS_PER_FILE = 5;

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
  await checkMatrices(folder, manifest, sound, findings);
  const rowIds = new Map<string, string>();
  for (const shard of manifest.shards) {
    await settle(filesPerShard);
    if (!sound.has(shard.files.rows.path)) continue;
    const counts = await checkShard(folder, manifest, shard, sound, rowIds, findings);
    tally.rowsChecked += counts.rows;
    tally.positionsChecked += counts.positions;
  }
  const problems = findings.list();
  return { ok: problems.length === 0, complete: manifest.complete, digest: manifest.digest, ...tally, problems };
}

const explain = (error: unknown) =>
  isStillhouseError(error)
    ? [
        error.report.problem,
        error.report.expected && `expected ${error.report.expected}`,
        error.report.got && `got ${error.report.got}`,
      ]
        .filter((part) => part !== undefined)
        .join(', ')
    : String(error);

function collectFindings() {
  const found = new Map<string, string[]>();
  return {
    add: (file: string, problem: string) => {
      const list = found.get(file) ?? [];
      found.set(file, list);
      list.push(problem);
    },
    list: (): VerifyProblem[] =>
      [...found].flatMap(([file, problems]) => {
        const rest = problems.length - PROBLEMS_PER_FILE;
        const shown = problems.slice(0, PROBLEMS_PER_FILE);
        return (rest > 0 ? [...shown, `and ${rest} more`] : shown).map((problem) => ({ file, problem }));
      }),
  };
}
type Findings = ReturnType<typeof collectFindings>;

/**
 * Checks the content of file after file, each at the call that asks for it or before: while the rows of a shard are checked,
 * the files after it are hashed on other threads, and are in the page cache when their turn comes.
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

async function checkMatrices(
  folder: string,
  manifest: CacheManifest,
  sound: ReadonlySet<string>,
  findings: Findings,
): Promise<void> {
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

/** Calls `visit` for every Arrow row of a file; damage becomes a finding. */
async function visitRows(
  file: ListedFile,
  open: () => Promise<ArrowFile>,
  rowCount: number,
  findings: Findings,
  visit: (batch: ArrowBatch, place: number, row: number) => void,
): Promise<void> {
  let arrow: ArrowFile | undefined;
  try {
    arrow = await open();
    const found = arrow.batchStarts.at(-1)!;
    if (found !== rowCount) findings.add(file.path, `there are ${found} rows, the manifest says ${rowCount}`);
    for (let i = 0; i + 1 < arrow.batchStarts.length; i++) {
      const batch = await arrow.readBatch(i);
      for (let place = 0; place < batch.rowCount; place++) visit(batch, place, batch.firstRow + place);
    }
  } catch (error) {
    findings.add(file.path, explain(error));
  } finally {
    await arrow?.close();
  }
}

async function checkShard(
  folder: string,
  manifest: CacheManifest,
  shard: ListedShard,
  sound: ReadonlySet<string>,
  rowIds: Map<string, string>,
  findings: Findings,
): Promise<{ readonly rows: number; readonly positions: number }> {
  const { description } = manifest;
  const { topk, sampled = null, hidden } = description.labels;
  const zstd = await loadZstd();
  const visitGroup = (content: ShardContent, visit: Parameters<typeof visitRows>[4]) => {
    const file = shard.files[contentGroup(content)]!;
    const path = join(folder, file.path);
    const open = () => openArrowFile(path, shardSchema(description, content));
    return sound.has(file.path) ? visitRows(file, open, shard.rowCount, findings, visit) : Promise.resolve();
  };
  const rows: { readonly id: string; readonly targets: Int32Array }[] = [];
  let tokens = 0;
  await visitGroup('rows', (batch, place) => {
    const row: CachedRow = decodeRow(batch, place);
    for (const problem of checkRow(row, description)) findings.add(shard.files.rows.path, `row ${row.id}: ${problem}`);
    const former = rowIds.get(row.id);
    if (former !== undefined) findings.add(shard.files.rows.path, `row id ${row.id} is in ${former} too`);
    rowIds.set(row.id, shard.files.rows.path);
    tokens += row.inputIds.length;
    rows.push({ id: row.id, targets: targetsOf(row, labelPositions(row.lossMask, description.positions)) });
  });
  const positions = rows.reduce((sum, row) => sum + row.targets.length, 0);
  const targetsAt = (index: number) => rows[index]?.targets ?? new Int32Array(0);
  if (tokens !== shard.tokenCount || positions !== shard.positionCount) {
    const said = `${shard.tokenCount} tokens and ${shard.positionCount} positions`;
    findings.add(
      shard.files.rows.path,
      `there are ${tokens} tokens and ${positions} positions, the manifest says ${said}`,
    );
  }
  const report = (path: string, index: number, id: string, problems: Iterable<string>) => {
    const row = rows[index];
    if (row?.id !== id) findings.add(path, `row ${index} is ${id}, in the rows it is ${row?.id ?? 'missing'}`);
    else for (const problem of problems) findings.add(path, `row ${id}: ${problem}`);
  };
  if (topk !== null) {
    const { path } = shard.files.topk!;
    const decode = openTopKDecoder(description, zstd);
    await visitGroup('topk', (batch, place, index) => {
      const targets = targetsAt(index);
      const [id, labels] = decode(batch, place, targets.length);
      report(path, index, id, checkTopK(labels, targets, description));
    });
  }
  if (sampled !== null) {
    const { path } = shard.files.sampled!;
    const decode = openSampledDecoder(description, zstd);
    await visitGroup('sampled', (batch, place, index) => {
      const positions = targetsAt(index).length;
      const [id, labels] = decode(batch, place, positions);
      report(path, index, id, checkSampled(labels, positions, description));
    });
  }
  for (const layer of hidden?.layers ?? []) {
    const { path } = shard.files[hiddenGroup(layer)]!;
    const shape = { layer, dtype: hidden!.dtype, width: description.teacher!.hiddenSize! };
    const listed = manifest.scales.find((one) => one.layer === layer);
    // Without its scale a layer cannot be decoded; the scale is among the findings already.
    if (listed !== undefined && !sound.has(listed.path)) continue;
    const scale = listed && (await readScale(join(folder, listed.path), description).catch(() => undefined));
    if (listed !== undefined && scale === undefined) continue;
    const decode = openHiddenDecoder(shape, scale);
    await visitGroup(layer, (batch, place, index) => {
      const positions = targetsAt(index).length;
      const [id, labels] = decode(batch, place, positions);
      report(path, index, id, checkHidden(labels, positions, description));
    });
  }
  return { rows: rows.length, positions };
}
