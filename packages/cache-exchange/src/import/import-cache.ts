import { createHash } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import { hashFile } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import {
  type CacheDescription,
  type LabelledRow,
  type LabelPositions,
  openCacheWriter,
  readManifest,
  type TeacherIdentity,
  type TokenizerIdentity,
} from '@stillhouse/teacher-cache';
import { openTokenizer, type Tokenizer } from '@stillhouse/tokenizer';
import { openParquetRows, type ParquetRows } from '../parquet/parquet-rows.ts';
import { type ForeignRow, type Repairs, toLabelledRow } from './import-rows.ts';

/** What the rows do not say and whoever imports them states. */
export interface ImportOptions {
  /** Folder with the Parquet files. */
  readonly from: string;
  /** Folder of the cache to write. */
  readonly out: string;
  readonly teacher: TeacherIdentity;
  /** Folder of the teacher's tokenizer, whose files the cache then carries. */
  readonly tokenizer?: string;
  /** Labels where a token is to be predicted (default), or everywhere. */
  readonly positions?: LabelPositions;
  /** Default 64. */
  readonly rowsPerShard?: number;
}

export interface ImportResult extends Repairs {
  readonly rowCount: number;
  readonly positionCount: number;
  readonly k: number;
  readonly sizeBytes: number;
  readonly cacheDigest: string;
}

/** Reads the rows of the files, in order, each time it is called. */
export interface ForeignSource {
  /** Rows that `read` gives, which a pass may have to count. */
  readonly rowCount: number;
  /** The most entries of a position. */
  readonly k: number;
  /** Whether every logprob was stored by itself, or some follow from a curve and residuals. */
  readonly precision: 'stored' | 'fitted';
  readonly read: (files: readonly ParquetRows[]) => AsyncGenerator<ForeignRow>;
}

/**
 * Opens the Parquet files of a folder, works with them, closes them.
 * @throws StillhouseError IMPORT_FOLDER_EMPTY, IMPORT_FILE_UNREADABLE
 */
export async function withParquetFiles<T>(
  folder: string,
  work: (files: readonly ParquetRows[]) => Promise<T>,
): Promise<T> {
  const names = await readdir(folder, { recursive: true }).catch((cause: unknown) => {
    throw emptyFolder(folder, 'the folder cannot be read', cause);
  });
  const paths = names.filter((name) => name.endsWith('.parquet')).sort(byNumbersInside);
  if (paths.length === 0) throw emptyFolder(folder, 'there is no Parquet file');
  const files: ParquetRows[] = [];
  try {
    for (const path of paths) files.push(await openParquetRows(join(folder, path)));
    return await work(files);
  } finally {
    for (const file of files) await file.close();
  }
}

/** data_2 before data_10. */
const byNumbersInside = new Intl.Collator('en', { numeric: true }).compare;

const emptyFolder = (where: string, problem: string, cause?: unknown) =>
  new StillhouseError({
    code: 'IMPORT_FOLDER_EMPTY',
    where,
    problem,
    expected: 'a folder with *.parquet',
    remedy: 'Write a data set that `save_to_disk` wrote as Parquet first: Dataset.load_from_disk(DIR).to_parquet(FILE)',
    ...(cause === undefined ? {} : { cause }),
  });

/**
 * Writes rows of another tool as a cache. Labels are top-k at T = 1: `tail` works there, `bucket` elsewhere. A killed
 * import goes on where it stopped when it is run again.
 * @throws StillhouseError IMPORT_LABELS_INVALID, those of `withParquetFiles`, of `openTokenizer` and of the cache
 *   writer
 */
export async function importRows(
  options: ImportOptions,
  files: readonly ParquetRows[],
  { rowCount, k, precision, read }: ForeignSource,
): Promise<ImportResult> {
  const { out, teacher, positions = 'response' } = options;
  const tokenizer = options.tokenizer === undefined ? null : await openTokenizer(options.tokenizer);
  if (tokenizer !== null && tokenizer.realVocabSize > teacher.vocabSize) {
    throw new StillhouseError({
      code: 'VOCABULARY_MISMATCH',
      where: tokenizer.folder,
      problem: 'the tokenizer has more ids than the teacher is said to have',
      expected: `at most ${teacher.vocabSize}`,
      got: String(tokenizer.realVocabSize),
    });
  }
  const description: CacheDescription = {
    teacher,
    tokenizer: tokenizer && identifyTokenizer(tokenizer),
    data: { ...(await identifyFiles(options.from, files)), rowCount },
    maxLength: null,
    limit: null,
    labels: { topk: { k, temperatures: [1] }, hidden: null, head: false },
    positions,
    rowsPerShard: options.rowsPerShard ?? 64,
    generator: await identifyGenerator(),
  };
  const repairs: Repairs = { rescaled: 0, largestShiftNats: 0, dropped: 0 };
  let positionCount = 0;
  const writer = await openCacheWriter(out, description, { totalRows: rowCount });
  try {
    if (tokenizer !== null && !writer.hasTokenizerFiles) {
      await writer.putTokenizerFiles(
        await Promise.all(tokenizer.files.map(async ({ name, path }) => ({ name, bytes: await readFile(path) }))),
      );
    }
    let rows: LabelledRow[] = [];
    let [shard, taken] = [0, 0];
    // A shard is synced while the rows of the next are read.
    let storing = Promise.resolve();
    for await (const row of read(files)) {
      const labelled = toLabelledRow(row, positions, { vocabSize: teacher.vocabSize, precision }, repairs);
      positionCount += labelled.positions.length;
      if (shard >= writer.completedShards) rows.push(labelled);
      if (++taken < writer.shardRange(shard)[1]) continue;
      if (rows.length > 0) {
        await storing;
        storing = writer.writeShard(shard, rows);
        storing.catch(() => {});
      }
      rows = [];
      shard++;
    }
    await storing;
    await writer.finish();
    const { digest } = await readManifest(out);
    return { ...repairs, rowCount, positionCount, k, sizeBytes: writer.size.totalBytes, cacheDigest: digest };
  } finally {
    await writer.close();
  }
}

const identifyTokenizer = ({ digest, realVocabSize, chatTemplate }: Tokenizer): TokenizerIdentity => ({
  digest,
  realVocabSize,
  chatTemplateSha256: chatTemplate?.sha256 ?? null,
});

/** A folder of files as one piece of data: the sha256 of their sha256 sums, in order. */
async function identifyFiles(folder: string, files: readonly ParquetRows[]) {
  const hash = createHash('sha256');
  for (const { path } of files) hash.update(`${(await hashFile(path)).sha256}\n`);
  return { sha256: hash.digest('hex'), name: basename(resolve(folder)) };
}

async function identifyGenerator(): Promise<CacheDescription['generator']> {
  const text = await readFile(new URL('../../package.json', import.meta.url), 'utf8');
  return { name: 'stillhouse', version: (JSON.parse(text) as { readonly version: string }).version };
}
