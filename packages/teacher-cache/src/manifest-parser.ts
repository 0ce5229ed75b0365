import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { isStillhouseError, StillhouseError } from '@stillhouse/errors';
import { type CacheDescription, type HiddenLayer, normaliseDescription, shardGroups } from './description.ts';
import {
  type CacheManifest,
  channelRmsPath,
  digestManifest,
  FORMAT_NAME,
  FORMAT_VERSION,
  type ListedFile,
  type ListedMatrix,
  type ListedShard,
  MANIFEST_NAME,
  OUTPUT_MATRIX_PATH,
  type ShardFiles,
  shardPath,
  tokenizerPath,
} from './manifest.ts';

/** A file name without folders that hides nothing and is no temporary name. */
export const isPlainFileName = (name: string) =>
  /^[A-Za-z0-9_][A-Za-z0-9._-]*$/.test(name) && !name.endsWith('.partial');

/** Reads values out of untrusted JSON; every complaint names the key. */
function openReader(where: string) {
  const fail = (key: string, expected: string, value: unknown): never => {
    const got = JSON.stringify(value) ?? 'nothing';
    throw new StillhouseError({
      code: 'CACHE_MANIFEST_INVALID',
      where,
      problem: `${key} is not what a manifest has there`,
      expected,
      got: got.length > 80 ? `${got.slice(0, 77)}...` : got,
      remedy: 'Fetch the cache again or build it anew',
    });
  };
  const object = (value: unknown, key: string): Record<string, unknown> =>
    value !== null && typeof value === 'object' && !Array.isArray(value)
      ? (value as Record<string, unknown>)
      : fail(key, 'an object', value);
  const array = (value: unknown, key: string): readonly unknown[] =>
    Array.isArray(value) ? value : fail(key, 'a list', value);
  const text = (value: unknown, key: string): string =>
    typeof value === 'string' ? value : fail(key, 'a string', value);
  const number = (value: unknown, key: string): number =>
    typeof value === 'number' ? value : fail(key, 'a number', value);
  const count = (value: unknown, key: string): number =>
    Number.isSafeInteger(value) && (value as number) >= 0 ? (value as number) : fail(key, 'a whole number', value);
  const flag = (value: unknown, key: string): boolean =>
    typeof value === 'boolean' ? value : fail(key, 'true or false', value);
  const orNull = <T>(value: unknown, key: string, read: (value: unknown, key: string) => T): T | null =>
    value === null ? null : read(value, key);
  const sha256 = (value: unknown, key: string): string => {
    const digest = text(value, key);
    return /^[0-9a-f]{64}$/.test(digest) ? digest : fail(key, '64 hexadecimal digits', value);
  };
  return { fail, object, array, text, number, count, flag, orNull, sha256 };
}
type Reader = ReturnType<typeof openReader>;

/**
 * Checks the text of a manifest: shape, digest, and that every path is the one its place has, so that none can lead
 * out of the cache.
 * @throws StillhouseError CACHE_MANIFEST_INVALID, CACHE_VERSION_TOO_NEW
 */
export function parseManifest(content: string, where: string): CacheManifest {
  const reader = openReader(where);
  let parsed: unknown;
  try {
    parsed = JSON.parse(content);
  } catch {
    reader.fail('the file', 'JSON', content.slice(0, 40));
  }
  const root = reader.object(parsed, 'the file');
  if (root.format !== FORMAT_NAME) reader.fail('format', JSON.stringify(FORMAT_NAME), root.format);
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
  const actual = digestManifest(root);
  if (root.digest !== actual) reader.fail('digest', `${actual}, which is what the rest gives`, root.digest);
  const description = readDescription(reader, root.description, where);
  const rows = reader.object(root.rows, 'rows');
  const manifest: CacheManifest = {
    format: FORMAT_NAME,
    version,
    digest: actual,
    complete: reader.flag(root.complete, 'complete'),
    rows: {
      planned: reader.count(rows.planned, 'rows.planned'),
      stored: reader.count(rows.stored, 'rows.stored'),
    },
    description,
    tokenizer: reader.array(root.tokenizer, 'tokenizer').map((value, i) => readTokenizerFile(reader, value, i)),
    outputMatrix: reader.orNull(root.outputMatrix, 'outputMatrix', (value) => readMatrix(reader, value)),
    channelRms: reader
      .array(root.channelRms, 'channelRms')
      .map((value, i) => readChannelRms(reader, value, `channelRms[${i}]`)),
    shards: reader.array(root.shards, 'shards').map((value, i) => readShard(reader, value, i, description)),
  };
  checkAgreement(reader, manifest);
  return manifest;
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

const readLayer = (reader: Reader, value: unknown, key: string): HiddenLayer =>
  value === 'final' ? 'final' : reader.count(value, key);

function readChannelRms(reader: Reader, value: unknown, key: string) {
  const layer = readLayer(reader, reader.object(value, key).layer, `${key}.layer`);
  return { layer, ...readListedFile(reader, value, key, channelRmsPath(layer)) };
}

function readShard(reader: Reader, value: unknown, index: number, description: CacheDescription): ListedShard {
  const key = `shards[${index}]`;
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
      groups.map((group) => [
        group,
        readListedFile(reader, files[group], `${key}.files.${group}`, shardPath(index, group)),
      ]),
    ) as unknown as ShardFiles,
  };
}

function readDescription(reader: Reader, value: unknown, where: string): CacheDescription {
  const key = (name: string) => `description.${name}`;
  const root = reader.object(value, 'description');
  const data = reader.object(root.data, key('data'));
  const labels = reader.object(root.labels, key('labels'));
  const generator = reader.object(root.generator, key('generator'));
  const description = {
    teacher: reader.orNull(root.teacher, key('teacher'), (raw) => {
      const teacher = reader.object(raw, key('teacher'));
      return {
        name: reader.text(teacher.name, key('teacher.name')),
        architecture: reader.text(teacher.architecture, key('teacher.architecture')),
        weightsSha256: reader.text(teacher.weightsSha256, key('teacher.weightsSha256')),
        configSha256: reader.text(teacher.configSha256, key('teacher.configSha256')),
        hiddenSize: reader.count(teacher.hiddenSize, key('teacher.hiddenSize')),
        layerCount: reader.count(teacher.layerCount, key('teacher.layerCount')),
        vocabSize: reader.count(teacher.vocabSize, key('teacher.vocabSize')),
      };
    }),
    tokenizer: reader.orNull(root.tokenizer, key('tokenizer'), (raw) => {
      const tokenizer = reader.object(raw, key('tokenizer'));
      return {
        digest: reader.text(tokenizer.digest, key('tokenizer.digest')),
        realVocabSize: reader.count(tokenizer.realVocabSize, key('tokenizer.realVocabSize')),
        chatTemplateSha256: reader.orNull(
          tokenizer.chatTemplateSha256,
          key('tokenizer.chatTemplateSha256'),
          reader.text,
        ),
      };
    }),
    data: {
      sha256: reader.text(data.sha256, key('data.sha256')),
      name: reader.text(data.name, key('data.name')),
      rowCount: reader.count(data.rowCount, key('data.rowCount')),
    },
    maxLength: reader.orNull(root.maxLength, key('maxLength'), reader.count),
    limit: reader.orNull(root.limit, key('limit'), reader.count),
    labels: {
      topk: reader.orNull(labels.topk, key('labels.topk'), (raw) => {
        const topk = reader.object(raw, key('labels.topk'));
        return {
          k: reader.count(topk.k, key('labels.topk.k')),
          temperatures: reader
            .array(topk.temperatures, key('labels.topk.temperatures'))
            .map((temperature) => reader.number(temperature, key('labels.topk.temperatures'))),
        };
      }),
      hidden: reader.orNull(labels.hidden, key('labels.hidden'), (raw) => {
        const hidden = reader.object(raw, key('labels.hidden'));
        return {
          layers: reader
            .array(hidden.layers, key('labels.hidden.layers'))
            .map((layer) => readLayer(reader, layer, key('labels.hidden.layers'))),
          dtype: reader.text(hidden.dtype, key('labels.hidden.dtype')),
        };
      }),
      head: reader.flag(labels.head, key('labels.head')),
    },
    positions: reader.text(root.positions, key('positions')),
    rowsPerShard: reader.count(root.rowsPerShard, key('rowsPerShard')),
    generator: {
      name: reader.text(generator.name, key('generator.name')),
      version: reader.text(generator.version, key('generator.version')),
    },
  };
  try {
    return normaliseDescription(description as CacheDescription);
  } catch (error) {
    if (!isStillhouseError(error)) throw error;
    throw new StillhouseError({
      ...error.report,
      code: 'CACHE_MANIFEST_INVALID',
      where: `${where}, ${error.report.where}`,
    });
  }
}

/** The counts must follow from each other: row ranges are contiguous, shards full, nothing missing when complete. */
function checkAgreement(reader: Reader, manifest: CacheManifest): void {
  const { description, rows, shards, complete, outputMatrix, channelRms } = manifest;
  let nextRow = 0;
  for (const [i, shard] of shards.entries()) {
    if (shard.firstRow !== nextRow) reader.fail(`shards[${i}].firstRow`, String(nextRow), shard.firstRow);
    const rowCount = Math.min(description.rowsPerShard, rows.planned - nextRow);
    if (shard.rowCount !== rowCount) reader.fail(`shards[${i}].rowCount`, String(rowCount), shard.rowCount);
    nextRow += rowCount;
  }
  if (rows.stored !== nextRow) reader.fail('rows.stored', String(nextRow), rows.stored);
  const { teacher, labels } = description;
  if (outputMatrix !== null && !labels.head)
    reader.fail('outputMatrix', 'null, by description.labels.head', outputMatrix);
  if (outputMatrix !== null && outputMatrix.rows !== teacher?.vocabSize) {
    reader.fail('outputMatrix.rows', String(teacher?.vocabSize), outputMatrix.rows);
  }
  if (outputMatrix !== null && outputMatrix.columns !== teacher?.hiddenSize) {
    reader.fail('outputMatrix.columns', String(teacher?.hiddenSize), outputMatrix.columns);
  }
  const scaled = labels.hidden?.dtype === 'int8' ? labels.hidden.layers : [];
  const listed = channelRms.map(({ layer }) => layer);
  if (listed.some((layer) => !scaled.includes(layer)) || new Set(listed).size !== listed.length) {
    reader.fail('channelRms', `layers out of ${JSON.stringify(scaled)}, each once`, listed);
  }
  if (!complete) return;
  if (rows.stored !== rows.planned) reader.fail('rows.stored', `${rows.planned} in a complete cache`, rows.stored);
  if (labels.head && outputMatrix === null) reader.fail('outputMatrix', 'a file, by description.labels.head', null);
  if (listed.length !== scaled.length) reader.fail('channelRms', `the layers ${JSON.stringify(scaled)}`, listed);
  const hasTokenizer = manifest.tokenizer.length > 0;
  if (hasTokenizer !== (description.tokenizer !== null)) {
    reader.fail('tokenizer', 'files if and only if description.tokenizer is there', manifest.tokenizer);
  }
}

/**
 * Reads and checks the manifest of a cache folder; the files it lists are not looked at.
 * @throws StillhouseError CACHE_NOT_FOUND, CACHE_MANIFEST_INVALID, CACHE_VERSION_TOO_NEW
 */
export async function readManifest(folder: string): Promise<CacheManifest> {
  const path = join(folder, MANIFEST_NAME);
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code !== 'ENOENT' && code !== 'ENOTDIR') throw cause;
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
