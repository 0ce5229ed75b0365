import { mkdir, readdir, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { explainWriteFailure, publishDirectory, stageDirectory } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import type { LabelledRow, LabelSelection, TeacherCache } from '@stillhouse/teacher-cache';
import type { ParquetColumn } from '../parquet/parquet-columns.ts';
import { writeParquetFile } from '../parquet/parquet-file.ts';

export interface ExportResult {
  /** Paths within the folder, in order. */
  readonly files: readonly string[];
  readonly rowCount: number;
  readonly sizeBytes: number;
}

export interface ExportPlan<Row extends { readonly id: string }> {
  readonly cache: TeacherCache;
  readonly outDir: string;
  /** The Parquet files and which rows of the cache go into each. */
  readonly parts: readonly { readonly name: string; readonly order: Iterable<number> }[];
  readonly select: LabelSelection;
  readonly columns: readonly ParquetColumn<Row>[];
  readonly metadata?: Readonly<Record<string, string>>;
  readonly pageVersion?: 1 | 2;
  readonly convert: (row: LabelledRow) => Row;
  /** Files beside them: configuration, a dataset card. */
  readonly texts?: readonly { readonly name: string; readonly text: string }[];
}

/** One file a shard, the shard's rows in their order. */
export function shardParts(cache: TeacherCache, nameOf: (index: number) => string): ExportPlan<never>['parts'] {
  return cache.manifest.shards.map(({ firstRow, rowCount }, index) => ({
    name: nameOf(index),
    order: Array.from({ length: rowCount }, (_, i) => firstRow + i),
  }));
}

/**
 * Writes the files of an export, a row at a time; they all appear at once, or none. Every Parquet file says in its
 * footer which cache it came from (`stillhouse.cache_digest`) and what its columns hold (`stillhouse.columns`).
 * @throws StillhouseError EXPORT_FOLDER_NOT_EMPTY, EXPORT_ROW_TOO_LARGE, DISK_FULL, NOT_WRITABLE; what reading throws
 */
export async function writeExport<Row extends { readonly id: string }>(plan: ExportPlan<Row>): Promise<ExportResult> {
  const { cache, outDir, parts, select, columns, convert } = plan;
  await requireEmpty(outDir);
  const metadata = {
    'stillhouse.cache_digest': cache.digest,
    'stillhouse.columns': JSON.stringify(Object.fromEntries(columns.map((one) => [one.name, one.description]))),
    ...plan.metadata,
  };
  const staged = await stageDirectory(outDir);
  try {
    const files: string[] = [];
    let rowCount = 0;
    let sizeBytes = 0;
    async function* read(order: Iterable<number>): AsyncGenerator<Row> {
      for await (const row of cache.rows(order, select)) {
        rowCount++;
        yield convert(row);
      }
    }
    for (const { name, order } of parts) {
      const path = join(staged, name);
      await mkdir(dirname(path), { recursive: true });
      const options = { columns, metadata, pageVersion: plan.pageVersion ?? 2 } as const;
      sizeBytes += await writeParquetFile(path, options, read(order));
      files.push(name);
    }
    for (const { name, text } of plan.texts ?? []) {
      await writeFile(join(staged, name), text);
      files.push(name);
      sizeBytes += Buffer.byteLength(text);
    }
    await publishDirectory(staged, outDir);
    return { files, rowCount, sizeBytes };
  } catch (cause) {
    await rm(staged, { recursive: true, force: true });
    throw explainWriteFailure(outDir, cause);
  }
}

/** @throws StillhouseError EXPORT_LABELS_MISSING if the cache has no top-k labels, or was opened without them */
export function requireTopK(cache: TeacherCache, format: string): void {
  if (cache.openLabels.topk === true) return;
  throw new StillhouseError({
    code: 'EXPORT_LABELS_MISSING',
    where: cache.folder,
    problem: `${format} holds top-k labels, this cache has none`,
    remedy: 'Build or extend it with --labels topk, or export --format parquet',
  });
}

async function requireEmpty(outDir: string): Promise<void> {
  const names = await readdir(outDir).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return [];
    if (error.code === 'ENOTDIR') return ['a file'];
    throw error;
  });
  if (names.length === 0) return;
  throw new StillhouseError({
    code: 'EXPORT_FOLDER_NOT_EMPTY',
    where: outDir,
    problem: 'there is something already',
    got: names.slice(0, 3).join(', '),
    remedy: 'Choose another folder or empty this one',
  });
}
