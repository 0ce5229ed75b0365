import { readFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { hashFile } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import { type EncodedRow, encodeRow, type RowSummary, readDataRows, summariseRows } from '@stillhouse/rows';
import { requireSetting } from '@stillhouse/settings';
import { type CacheDescription, normaliseDescription, type TokenizerIdentity } from '@stillhouse/teacher-cache';
import { hasTokenizer, openTokenizer, type Tokenizer } from '@stillhouse/tokenizer';
import { pinIds } from '../scoring/pinned-ids.ts';
import type { BuildSettings } from '../settings/build-settings.ts';
import { needTeacher, resolveLabels } from '../settings/label-settings.ts';
import { openFolderTeacher } from '../teacher/folder-teacher.ts';
import type { Teacher } from '../teacher/teacher.ts';

/** Tokens and label positions of a shard. */
export interface ShardCounts {
  readonly rows: number;
  readonly tokens: number;
  readonly positions: number;
}

/** All that goes into a cache, opened and checked; nothing is written yet. */
export interface BuildInputs {
  readonly out: string;
  /** null for `labels none`. */
  readonly teacher: Teacher | null;
  readonly tokenizer: Tokenizer | null;
  readonly description: CacheDescription;
  readonly summary: RowSummary;
  readonly shards: readonly ShardCounts[];
  /** Rows by their numbers, those that are wanted, encoded. */
  rows(isWanted: (row: number) => boolean): AsyncGenerator<EncodedRow>;
  /** sha256 of the data file as it is now. */
  hashData(): Promise<string>;
  close(): Promise<void>;
}

/**
 * Opens teacher, tokenizer and data, reads every row once, and checks all that can be known before scoring.
 * @throws StillhouseError SETTING_MISSING, LABELS_CONTRADICTORY, PINNED_ID_UNKNOWN, VOCABULARY_MISMATCH, and those of
 *   `openFolderTeacher`, `openTokenizer`, `readDataRows`, `encodeRow`
 */
export async function openBuildInputs(settings: BuildSettings): Promise<BuildInputs> {
  const data = requireSetting(settings, 'data', 'FILE.jsonl');
  const out = requireSetting(settings, 'out', 'DIR');
  const labels = resolveLabels(settings);
  const teacher = needTeacher(labels)
    ? await openFolderTeacher(requireSetting(settings, 'teacher', 'DIR'), labels)
    : null;
  try {
    const tokenizer = await openBuildTokenizer(settings, teacher);
    const rows = (isWanted: (row: number) => boolean) => encodeRows(settings, data, { teacher, tokenizer }, isWanted);
    const shards: { rows: number; tokens: number; positions: number }[] = [];
    const summary = await summariseRows(countShards(rows(everyRow), settings, shards));
    const hashData = async () => (await hashFile(data)).sha256;
    const description = normaliseDescription({
      teacher: teacher && (await teacher.identify()),
      tokenizer: tokenizer && identifyTokenizer(tokenizer),
      data: { sha256: await hashData(), name: basename(data), rowCount: summary.rowCount },
      maxLength: settings.maxLength ?? null,
      limit: settings.limit ?? null,
      labels: pinLabels(labels, settings, teacher, tokenizer),
      positions: settings.positions,
      rowsPerShard: settings.rowsPerShard,
      generator: await identifyGenerator(),
    });
    const close = async () => teacher?.close();
    return { out, teacher, tokenizer, description, summary, shards, rows, hashData, close };
  } catch (error) {
    await teacher?.close();
    throw error;
  }
}

export const everyRow = () => true;

/** @throws StillhouseError as `pinIds` does */
export function pinLabels(
  labels: CacheDescription['labels'],
  { pin }: Pick<BuildSettings, 'pin'>,
  teacher: Teacher | null,
  tokenizer: Tokenizer | null,
): CacheDescription['labels'] {
  return labels.topk === null ? labels : { ...labels, topk: pinIds(labels.topk, pin, teacher!.vocabulary, tokenizer) };
}

export async function openBuildTokenizer(
  { tokenizer: named, teacher: teacherFolder }: Pick<BuildSettings, 'tokenizer' | 'teacher'>,
  teacher: Teacher | null,
): Promise<Tokenizer | null> {
  const own = teacherFolder !== undefined && (await hasTokenizer(teacherFolder)) ? teacherFolder : undefined;
  const folder = named ?? own;
  if (folder === undefined) return null;
  const tokenizer = await openTokenizer(folder);
  if (teacher !== null && tokenizer.realVocabSize > teacher.vocabulary.size) {
    throw new StillhouseError({
      code: 'VOCABULARY_MISMATCH',
      where: folder,
      problem: `the tokenizer has ids that the teacher in ${teacher.where} does not know`,
      expected: `at most ${teacher.vocabulary.size} ids`,
      got: String(tokenizer.realVocabSize),
      remedy: "Use the teacher's own tokenizer",
    });
  }
  return tokenizer;
}

export const identifyTokenizer = ({ digest, realVocabSize, chatTemplate }: Tokenizer): TokenizerIdentity => ({
  digest,
  realVocabSize,
  chatTemplateSha256: chatTemplate?.sha256 ?? null,
});

/** The rows of a data file that are wanted, by their numbers in it. */
export async function* encodeRows(
  { limit, maxLength }: Pick<BuildSettings, 'limit' | 'maxLength'>,
  data: string,
  { teacher, tokenizer }: Pick<BuildInputs, 'teacher' | 'tokenizer'>,
  isWanted: (row: number) => boolean,
): AsyncGenerator<EncodedRow> {
  const vocabSize = Math.min(tokenizer?.realVocabSize ?? Infinity, teacher?.vocabulary.size ?? Infinity);
  const options = {
    where: data,
    ...(maxLength === undefined ? {} : { maxLength }),
    ...(teacher === null ? {} : { contextLength: teacher.contextLength }),
    ...(vocabSize === Infinity ? {} : { vocabSize }),
  };
  let index = 0;
  for await (const row of readDataRows(data, limit === undefined ? {} : { limit })) {
    if (isWanted(index++)) yield encodeRow(row, tokenizer, options);
  }
}

/** Counts the shards of rows as they pass. */
export async function* countShards(
  rows: AsyncIterable<EncodedRow>,
  { rowsPerShard, positions }: Pick<BuildSettings, 'rowsPerShard' | 'positions'>,
  into: { rows: number; tokens: number; positions: number }[],
): AsyncGenerator<EncodedRow> {
  for await (const row of rows) {
    if (into.length === 0 || into.at(-1)!.rows === rowsPerShard) into.push({ rows: 0, tokens: 0, positions: 0 });
    const shard = into.at(-1)!;
    const { inputIds, lossMask } = row;
    shard.rows += 1;
    shard.tokens += inputIds.length;
    shard.positions += positions === 'all' ? inputIds.length - 1 : lossMask.reduce((sum, bit) => sum + bit, 0);
    yield row;
  }
}

/** This program, by the version that all packages share. */
export async function identifyGenerator(): Promise<CacheDescription['generator']> {
  const text = await readFile(new URL('../../package.json', import.meta.url), 'utf8');
  return { name: 'stillhouse', version: (JSON.parse(text) as { readonly version: string }).version };
}
