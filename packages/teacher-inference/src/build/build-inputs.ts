import { readFile } from 'node:fs/promises';
import { basename, resolve } from 'node:path';
import {
  digestModel,
  type ModelConfig,
  type ModelWeights,
  openModelWeights,
  readModelConfig,
} from '@stillhouse/checkpoint';
import { hashFile } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import { type EncodedRow, encodeRow, type RowSummary, readDataRows, summariseRows } from '@stillhouse/rows';
import { requireSetting } from '@stillhouse/settings';
import type { CacheDescription, TokenizerIdentity, WeightsIdentity } from '@stillhouse/teacher-cache';
import { hasLayer, nameLayers, normaliseDescription } from '@stillhouse/teacher-cache';
import { hasTokenizer, openTokenizer, type Tokenizer } from '@stillhouse/tokenizer';
import { pinIds } from '../scoring/pinned-ids.ts';
import type { BuildSettings } from '../settings/build-settings.ts';
import { needTeacher, resolveLabels } from '../settings/label-settings.ts';

export interface Teacher {
  readonly folder: string;
  readonly config: ModelConfig;
  readonly weights: ModelWeights;
}

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
 * @throws StillhouseError SETTING_MISSING, LABELS_CONTRADICTORY, PINNED_ID_UNKNOWN, TOP_K_LARGER_THAN_VOCABULARY, HIDDEN_LAYER_OUT_OF_RANGE,
 *   VOCABULARY_MISMATCH, and those of `readModelConfig`, `openModelWeights`, `openTokenizer`, `readDataRows`, `encodeRow`
 */
export async function openBuildInputs(settings: BuildSettings): Promise<BuildInputs> {
  const data = requireSetting(settings, 'data', 'FILE.jsonl');
  const out = requireSetting(settings, 'out', 'DIR');
  const labels = resolveLabels(settings);
  const teacher = needTeacher(labels) ? await openTeacher(requireSetting(settings, 'teacher', 'DIR'), labels) : null;
  try {
    const tokenizer = await openBuildTokenizer(settings, teacher);
    const rows = (isWanted: (row: number) => boolean) => encodeRows(settings, data, { teacher, tokenizer }, isWanted);
    const shards: { rows: number; tokens: number; positions: number }[] = [];
    const summary = await summariseRows(countShards(rows(everyRow), settings, shards));
    const hashData = async () => (await hashFile(data)).sha256;
    const description = normaliseDescription({
      teacher: teacher && (await identifyTeacher(teacher)),
      tokenizer: tokenizer && identifyTokenizer(tokenizer),
      data: { sha256: await hashData(), name: basename(data), rowCount: summary.rowCount },
      maxLength: settings.maxLength ?? null,
      limit: settings.limit ?? null,
      labels: pinLabels(labels, settings, teacher, tokenizer),
      positions: settings.positions,
      rowsPerShard: settings.rowsPerShard,
      generator: await identifyGenerator(),
    });
    const close = async () => teacher?.weights.close();
    return { out, teacher, tokenizer, description, summary, shards, rows, hashData, close };
  } catch (error) {
    await teacher?.weights.close();
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
  return labels.topk === null ? labels : { ...labels, topk: pinIds(labels.topk, pin, teacher!.config, tokenizer) };
}

export async function openTeacher(folder: string, { topk, hidden }: CacheDescription['labels']): Promise<Teacher> {
  const config = await readModelConfig(folder);
  if (topk !== null && topk.k > config.vocabSize) {
    throw new StillhouseError({
      code: 'TOP_K_LARGER_THAN_VOCABULARY',
      where: topk.topP === undefined ? '--top-k' : '--max-k',
      problem: `${folder} has fewer ids than that`,
      expected: `at most ${config.vocabSize}`,
      got: String(topk.k),
    });
  }
  const outside = hidden?.layers.find((layer) => !hasLayer(config.layerCount, layer));
  if (outside !== undefined) {
    throw new StillhouseError({
      code: 'HIDDEN_LAYER_OUT_OF_RANGE',
      where: '--hidden-layers',
      problem: `${folder} has no such layer`,
      expected: nameLayers(config.layerCount),
      got: String(outside),
    });
  }
  return { folder, config, weights: await openModelWeights(folder, config) };
}

export async function openBuildTokenizer(
  { tokenizer: named, teacher: teacherFolder }: Pick<BuildSettings, 'tokenizer' | 'teacher'>,
  teacher: Teacher | null,
): Promise<Tokenizer | null> {
  const own = teacherFolder !== undefined && (await hasTokenizer(teacherFolder)) ? teacherFolder : undefined;
  const folder = named ?? own;
  if (folder === undefined) return null;
  const tokenizer = await openTokenizer(folder);
  if (teacher !== null && tokenizer.realVocabSize > teacher.config.vocabSize) {
    throw new StillhouseError({
      code: 'VOCABULARY_MISMATCH',
      where: folder,
      problem: `the tokenizer has ids that the teacher in ${teacher.folder} does not know`,
      expected: `at most ${teacher.config.vocabSize} ids`,
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

export async function identifyTeacher({ folder, config }: Teacher): Promise<WeightsIdentity> {
  const { weightsSha256, configSha256 } = await digestModel(folder);
  const { architecture, hiddenSize, layerCount, vocabSize } = config;
  return {
    kind: 'weights',
    name: basename(resolve(folder)),
    architecture,
    weightsSha256,
    configSha256,
    hiddenSize,
    layerCount,
    vocabSize,
  };
}

/** The rows of a data file that are wanted, by their numbers in it. */
export async function* encodeRows(
  { limit, maxLength }: Pick<BuildSettings, 'limit' | 'maxLength'>,
  data: string,
  { teacher, tokenizer }: Pick<BuildInputs, 'teacher' | 'tokenizer'>,
  isWanted: (row: number) => boolean,
): AsyncGenerator<EncodedRow> {
  const vocabSize = Math.min(tokenizer?.realVocabSize ?? Infinity, teacher?.config.vocabSize ?? Infinity);
  const options = {
    where: data,
    ...(maxLength === undefined ? {} : { maxLength }),
    ...(teacher === null ? {} : { contextLength: teacher.config.maxPositions }),
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
