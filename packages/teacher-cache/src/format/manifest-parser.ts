import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { pathExists } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import { scaledLayers, scalePath } from '../codecs/hidden-scale.ts';
import { type CacheDescription, type ShardGroup, shardGroups } from './description.ts';
import { readData, readDescription, readLayer } from './description-parser.ts';
import {
  type CacheManifest,
  digestManifest,
  FORMAT_NAME,
  FORMAT_VERSION,
  type ListedFile,
  type ListedMatrix,
  type ListedShard,
  MANIFEST_NAME,
  type ManifestBody,
  OUTPUT_MATRIX_PATH,
  requiredVersion,
  type ShardFiles,
  shardPath,
  tokenizerPath,
} from './manifest.ts';
import { findAbsurdCount, findAbsurdFile, MANIFEST_LIMIT_BYTES } from './manifest-bounds.ts';
import { openReader, type Reader } from './manifest-json.ts';
import { type GroupProvenance, impliedProvenance } from './provenance.ts';
import { layOutShards } from './shard-layout.ts';

/** A file name without folders that hides nothing and is no temporary name. */
export const isPlainFileName = (name: string) =>
  /^[A-Za-z0-9_][A-Za-z0-9._-]*$/.test(name) && !name.endsWith('.partial');

/** The parts of a sealed file that every format has, checked. */
export interface SealedFile {
  readonly reader: Reader;
  readonly root: Record<string, unknown>;
  readonly version: number;
  readonly digest: string;
}

/**
 * Reads the text of a manifest, or of a file like one: format name, version, digest.
 * @throws StillhouseError CACHE_MANIFEST_INVALID, CACHE_VERSION_TOO_NEW
 */
export function openSealed(content: string, where: string, format: string): SealedFile {
  const reader = openReader(where);
  let parsed: unknown;
  try {
    parsed = JSON.parse(content);
  } catch {
    reader.fail('the file', 'JSON', content.slice(0, 40));
  }
  const root = reader.object(parsed, 'the file');
  if (root.format !== format) reader.fail('format', JSON.stringify(format), root.format);
  const version = reader.count(root.version, 'version');
  if (version > FORMAT_VERSION) {
    throw new StillhouseError({
      code: 'CACHE_VERSION_TOO_NEW',
      where,
      problem: 'the cache was written by a newer version than this one can read',
      expected: `format version ${FORMAT_VERSION} or lower`,
      got: String(version),
      remedy: 'Update Stillhouse, or build the cache again with this version',
    });
  }
  if (version < 1) reader.fail('version', `1 to ${FORMAT_VERSION}`, version);
  const actual = digestOf(reader, root);
  if (root.digest !== actual) reader.fail('digest', `${actual}, which is what the rest gives`, root.digest);
  return { reader, root, version, digest: actual };
}

/**
 * Checks the text of a manifest: shape, digest, and that every path is the one its place has, so that none can lead
 * out of the cache.
 * @throws StillhouseError CACHE_MANIFEST_INVALID, CACHE_VERSION_TOO_NEW
 */
export function parseManifest(content: string, where: string): CacheManifest {
  const sealed = openSealed(content, where, FORMAT_NAME);
  const manifest = {
    format: FORMAT_NAME,
    version: sealed.version,
    digest: sealed.digest,
    ...readBody(sealed, where, (index) => index),
  };
  checkAgreement(sealed.reader, manifest);
  // Version 1 is read for ever and has nothing that is newer; others say at least 2.
  const needed = requiredVersion(manifest.description);
  if (needed > 2 && sealed.version < needed) {
    sealed.reader.fail('version', `${needed} or higher, for what the description says`, sealed.version);
  }
  const absurd = findAbsurdFile(manifest);
  if (absurd !== undefined) sealed.reader.fail(absurd.key, absurd.expected, absurd.got);
  return manifest;
}

function digestOf(reader: Reader, root: object): string {
  try {
    return digestManifest(root);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    return reader.fail('the file', 'JSON that is not nested without end', 'a nesting too deep to read');
  }
}

/**
 * What follows the head of a sealed file; its shards may be some of the cache's.
 * @param indexOf the number of the shard that is listed at a place, undefined where no shard begins with that row
 */
export function readBody(
  { reader, root, version }: SealedFile,
  where: string,
  indexOf: (place: number, firstRow: number, description: CacheDescription, planned: number) => number | undefined,
): ManifestBody {
  const description = readDescription(reader, root.description, where);
  const rows = reader.object(root.rows, 'rows');
  const planned = reader.count(rows.planned, 'rows.planned');
  const stored = reader.count(rows.stored, 'rows.stored');
  const absurd = findAbsurdCount(description, { planned, stored });
  if (absurd !== undefined) reader.fail(absurd.key, absurd.expected, absurd.got);
  const readIndex = (value: unknown, place: number) => {
    const key = `shards[${place}].firstRow`;
    const firstRow = reader.count(reader.object(value, `shards[${place}]`).firstRow, key);
    return indexOf(place, firstRow, description, planned) ?? reader.fail(key, 'the first row of a shard', firstRow);
  };
  return {
    complete: reader.flag(root.complete, 'complete'),
    rows: { planned, stored },
    description,
    tokenizer: reader.array(root.tokenizer, 'tokenizer').map((value, i) => readTokenizerFile(reader, value, i)),
    outputMatrix: reader.orNull(root.outputMatrix, 'outputMatrix', (value) => readMatrix(reader, value)),
    scales: readScales(reader, root, version, description),
    shards: reader
      .array(root.shards, 'shards')
      .map((value, i) =>
        readShard(reader, value, { key: `shards[${i}]`, index: readIndex(value, i), version }, description),
      ),
    provenance:
      version === 1
        ? impliedProvenance(description, stored)
        : reader
            .array(root.provenance, 'provenance')
            .map((value, i) => readProvenance(reader, value, `provenance[${i}]`, description)),
  };
}

function readListedFile(reader: Reader, value: unknown, key: string, path: string): ListedFile {
  const file = reader.object(value, key);
  if (file.path !== path) reader.fail(`${key}.path`, JSON.stringify(path), file.path);
  return {
    path,
    sizeBytes: reader.count(file.sizeBytes, `${key}.sizeBytes`),
    sha256: reader.sha256(file.sha256, `${key}.sha256`),
  };
}

function readTokenizerFile(reader: Reader, value: unknown, index: number): ListedFile {
  const key = `tokenizer[${index}]`;
  const path = reader.text(reader.object(value, key).path, `${key}.path`);
  const name = path.startsWith('tokenizer/') ? path.slice('tokenizer/'.length) : '';
  if (!isPlainFileName(name)) reader.fail(`${key}.path`, 'tokenizer/ and a plain file name', path);
  return readListedFile(reader, value, key, tokenizerPath(name));
}

function readMatrix(reader: Reader, value: unknown): ListedMatrix {
  const key = 'outputMatrix';
  const matrix = reader.object(value, key);
  const { dtype } = matrix;
  if (dtype !== 'bfloat16' && dtype !== 'float16' && dtype !== 'float32') {
    return reader.fail(`${key}.dtype`, 'bfloat16, float16 or float32', dtype);
  }
  return {
    ...readListedFile(reader, value, key, OUTPUT_MATRIX_PATH),
    dtype,
    rows: reader.count(matrix.rows, `${key}.rows`),
    columns: reader.count(matrix.columns, `${key}.columns`),
  };
}

/** Version 1 knew channel RMS only and called the list so. */
function readScales(
  reader: Reader,
  root: Record<string, unknown>,
  version: number,
  { labels }: CacheDescription,
): ManifestBody['scales'] {
  const name = version === 1 ? 'channelRms' : 'scales';
  return reader.array(root[name], name).map((value, i) => {
    const key = `${name}[${i}]`;
    const layer = readLayer(reader, reader.object(value, key).layer, `${key}.layer`);
    return { layer, ...readListedFile(reader, value, key, scalePath(layer, labels.hidden?.dtype ?? 'int8')) };
  });
}

function readShard(
  reader: Reader,
  value: unknown,
  { key, index, version }: { readonly key: string; readonly index: number; readonly version: number },
  description: CacheDescription,
): ListedShard {
  const shard = reader.object(value, key);
  const files = reader.object(shard.files, `${key}.files`);
  const groups = shardGroups(description);
  if (Object.keys(files).length !== groups.length) {
    reader.fail(`${key}.files`, `the groups ${groups.join(', ')}`, Object.keys(files));
  }
  return {
    firstRow: reader.count(shard.firstRow, `${key}.firstRow`),
    rowCount: reader.count(shard.rowCount, `${key}.rowCount`),
    tokenCount: reader.count(shard.tokenCount, `${key}.tokenCount`),
    positionCount: reader.count(shard.positionCount, `${key}.positionCount`),
    files: Object.fromEntries(
      groups.map((group) => {
        const place = `${key}.files.${group}`;
        const file = reader.object(files[group], place);
        const revision = version === 1 ? 0 : readRevision(file.path);
        return [group, readListedFile(reader, file, place, shardPath(index, group, revision))];
      }),
    ) as unknown as ShardFiles,
  };
}

/** 0 for whatever is no revised path; then it must be the plain one. */
export const readRevision = (path: unknown) => Number(/\.r([1-9]\d{0,5})\.arrow$/.exec(String(path))?.[1] ?? 0);

function readProvenance(reader: Reader, value: unknown, key: string, description: CacheDescription): GroupProvenance {
  const entry = reader.object(value, key);
  const data = reader.object(entry.data, `${key}.data`);
  const generator = reader.object(entry.generator, `${key}.generator`);
  const settings = reader.object(entry.settings, `${key}.settings`);
  const group = reader.text(entry.group, `${key}.group`) as ShardGroup;
  const groups = shardGroups(description);
  if (!groups.includes(group)) reader.fail(`${key}.group`, `one of ${groups.join(', ')}`, group);
  for (const [name, setting] of Object.entries(settings)) {
    if (typeof setting !== 'string') reader.number(setting, `${key}.settings.${name}`);
  }
  return {
    group,
    firstRow: reader.count(entry.firstRow, `${key}.firstRow`),
    rowCount: reader.count(entry.rowCount, `${key}.rowCount`),
    data: readData(reader, data, `${key}.data`),
    teacherSha256: reader.orNull(entry.teacherSha256, `${key}.teacherSha256`, reader.text),
    generator: {
      name: reader.text(generator.name, `${key}.generator.name`),
      version: reader.text(generator.version, `${key}.generator.version`),
    },
    settings: settings as GroupProvenance['settings'],
  };
}

/**
 * The counts must follow from each other: row ranges are contiguous, laid out as they must be, nothing missing when
 * complete.
 */
function checkAgreement(reader: Reader, manifest: CacheManifest): void {
  const { description, rows, shards, complete, outputMatrix, scales } = manifest;
  const addedRows = (description.furtherData ?? []).reduce((sum, { rowCount }) => sum + rowCount, 0);
  if (addedRows > 0 && addedRows >= rows.planned) {
    reader.fail('rows.planned', `more than the ${addedRows} of description.furtherData`, rows.planned);
  }
  const layout = layOutShards(description, rows.planned);
  let nextRow = 0;
  for (const [i, shard] of shards.entries()) {
    const range = layout.next().value ?? reader.fail(`shards[${i}]`, `no more than ${i} shards`, shard.firstRow);
    if (shard.firstRow !== nextRow) reader.fail(`shards[${i}].firstRow`, String(nextRow), shard.firstRow);
    if (shard.rowCount !== range.rowCount) {
      reader.fail(`shards[${i}].rowCount`, String(range.rowCount), shard.rowCount);
    }
    nextRow += shard.rowCount;
  }
  if (rows.stored !== nextRow) reader.fail('rows.stored', String(nextRow), rows.stored);
  checkProvenance(reader, manifest);
  const { teacher, labels } = description;
  if (outputMatrix !== null && !labels.head)
    reader.fail('outputMatrix', 'null, by description.labels.head', outputMatrix);
  if (outputMatrix !== null && outputMatrix.rows !== teacher?.vocabSize) {
    reader.fail('outputMatrix.rows', String(teacher?.vocabSize), outputMatrix.rows);
  }
  if (outputMatrix !== null && outputMatrix.columns !== teacher?.hiddenSize) {
    reader.fail('outputMatrix.columns', String(teacher?.hiddenSize), outputMatrix.columns);
  }
  const scaled = scaledLayers(description);
  const listed = scales.map(({ layer }) => layer);
  if (listed.some((layer) => !scaled.includes(layer)) || new Set(listed).size !== listed.length) {
    reader.fail('scales', `layers out of ${JSON.stringify(scaled)}, each once`, listed);
  }
  if (!complete) return;
  if (rows.stored !== rows.planned) reader.fail('rows.stored', `${rows.planned} in a complete cache`, rows.stored);
  if (labels.head && outputMatrix === null) reader.fail('outputMatrix', 'a file, by description.labels.head', null);
  if (listed.length !== scaled.length) reader.fail('scales', `the layers ${JSON.stringify(scaled)}`, listed);
  const hasTokenizer = manifest.tokenizer.length > 0;
  if (hasTokenizer !== (description.tokenizer !== null)) {
    reader.fail('tokenizer', 'files if and only if description.tokenizer is there', manifest.tokenizer);
  }
}

/** Every stored row of every group has one entry. */
function checkProvenance(reader: Reader, { provenance, rows, description }: ManifestBody): void {
  const ends = new Map<ShardGroup, number>();
  for (const [i, { group, firstRow, rowCount }] of provenance.entries()) {
    const end = ends.get(group) ?? 0;
    if (firstRow !== end) reader.fail(`provenance[${i}].firstRow`, `${end} of group ${group}`, firstRow);
    ends.set(group, end + rowCount);
  }
  for (const group of shardGroups(description)) {
    const end = ends.get(group) ?? 0;
    if (end !== rows.stored) reader.fail('provenance', `${rows.stored} rows of group ${group}`, end);
  }
}

/**
 * Reads and checks the manifest of a cache folder; the files it lists are not looked at.
 * @throws StillhouseError CACHE_NOT_FOUND, CACHE_NOT_MERGED, CACHE_MANIFEST_INVALID, CACHE_VERSION_TOO_NEW
 */
export async function readManifest(folder: string): Promise<CacheManifest> {
  const path = join(folder, MANIFEST_NAME);
  let text: string;
  try {
    const { size } = await stat(path);
    if (size > MANIFEST_LIMIT_BYTES) openReader(path).fail('the file', `at most ${MANIFEST_LIMIT_BYTES} bytes`, size);
    text = await readFile(path, 'utf8');
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code !== 'ENOENT' && code !== 'ENOTDIR') throw cause;
    await refuseUnmerged(folder);
    throw new StillhouseError({
      code: 'CACHE_NOT_FOUND',
      where: folder,
      problem: `this is not a teacher cache, there is no ${MANIFEST_NAME}`,
      remedy: 'Name the folder that `stillhouse cache build --out` wrote',
      cause,
    });
  }
  return parseManifest(text, path);
}

/** The manifest of a cache folder; undefined when none has been written there, or parts of it only. */
export async function readManifestIfThere(folder: string): Promise<CacheManifest | undefined> {
  return readManifest(folder).catch((error: unknown) => {
    const { code } = error as { code?: unknown };
    if (code === 'CACHE_NOT_FOUND' || code === 'CACHE_NOT_MERGED') return undefined;
    throw error;
  });
}

async function refuseUnmerged(folder: string): Promise<void> {
  if (!(await pathExists(join(folder, 'parts/plan.json')))) return;
  throw new StillhouseError({
    code: 'CACHE_NOT_MERGED',
    where: folder,
    problem: 'the cache is built in parts that are not merged yet',
    remedy: 'Run `stillhouse cache merge` on it, which says what is missing',
  });
}
