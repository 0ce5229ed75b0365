import { createHash } from 'node:crypto';
import { StillhouseError } from '@stillhouse/errors';
import { isObject, type JsonObject, nameKind, readText, refuseType } from './fields.ts';
import { readLines } from './json-lines.ts';
import type { RowMetadata } from './row-content.ts';

/** What a file of JSON lines holds, for errors. */
export interface RecordKind {
  readonly name: 'row' | 'question';
  /** The forms that a line may have. */
  readonly forms: string;
  /** What the id of a line that has none is derived from. */
  readonly idSource: 'the content' | 'the line';
}

/** One line of a file of rows or of questions; what it says beside its id and metadata is read by its kind. */
export interface LineRecord {
  /** Unique in its file. */
  readonly id: string;
  /** Counted from 1. */
  readonly line: number;
  /** File and line, named in errors. */
  readonly where: string;
  readonly metadata: RowMetadata;
  /** The line's JSON. */
  readonly value: JsonObject;
}

/** How much of a file is read. */
export interface ReadOptions {
  /** Reading stops after so many; what follows is not looked at. */
  readonly limit?: number;
}

/**
 * Reads JSON lines one after the other, memory being that of a line and the ids; empty lines are skipped. A fault
 * further down shows when it is reached.
 * @throws StillhouseError DATA_NOT_READABLE, DATA_EMPTY, DATA_NOT_UTF8, DATA_NOT_JSON, ROW_FORM (no object), ROW_TYPE,
 *   ROW_ID_DUPLICATE
 */
export async function* readRecords(
  path: string,
  kind: RecordKind,
  { limit = Number.POSITIVE_INFINITY }: ReadOptions = {},
): AsyncGenerator<LineRecord> {
  const lineOfId = new Map<string, number>();
  if (limit <= 0) return;
  for await (const { number: line, text } of readLines(path)) {
    if (text.trim() === '') continue;
    const where = `${path}, line ${line}`;
    const value = parseObject(text, kind, where);
    const metadata = readMetadata(value, where);
    const derived = () => (kind.idSource === 'the line' ? `line-${line}` : hashContent(value, lineOfId));
    const id = readId(value, where) ?? derived();
    refuseDuplicate(id, lineOfId.get(id), where, kind);
    lineOfId.set(id, line);
    yield { id, line, where, metadata, value };
    if (lineOfId.size >= limit) return;
  }
  if (lineOfId.size > 0) return;
  throw new StillhouseError({
    code: 'DATA_EMPTY',
    where: path,
    problem: `the file holds no ${kind.name}s`,
    expected: 'one JSON object a line',
  });
}

function parseObject(text: string, { name, forms }: RecordKind, where: string): JsonObject {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    const problem = `not valid JSON (${(cause as Error).message})`;
    throw new StillhouseError({
      code: 'DATA_NOT_JSON',
      where,
      problem,
      expected: `one ${name} a line: ${forms}`,
      cause,
    });
  }
  if (isObject(value)) return value;
  const got = nameKind(value);
  throw new StillhouseError({ code: 'ROW_FORM', where, problem: 'not an object', expected: forms, got });
}

const readMetadata = (value: JsonObject, where: string): RowMetadata => ({
  ...readText(value, 'task', where),
  ...readText(value, 'split', where),
  ...readText(value, 'source', where),
  ...readText(value, 'answer', where, true),
});

function readId(value: JsonObject, where: string): string | undefined {
  const { id } = readText(value, 'id', where, true);
  if (id === '') refuseType(where, 'id', 'a text that is not empty', id);
  return id;
}

function refuseDuplicate(id: string, earlier: number | undefined, where: string, kind: RecordKind): void {
  if (earlier === undefined) return;
  throw new StillhouseError({
    code: 'ROW_ID_DUPLICATE',
    where,
    problem: `the id ${JSON.stringify(id)} is that of line ${earlier} already`,
    expected: `an id of its own for every ${kind.name}`,
    remedy: `Rename one of the two, or leave ids out to have them derived from ${kind.idSource}`,
  });
}

/** Equal lines are told apart by `-2`, `-3` and so on. */
function hashContent(value: JsonObject, taken: ReadonlyMap<string, number>): string {
  const base = createHash('sha256').update(canonicalJson(value)).digest('hex').slice(0, 16);
  let id = base;
  for (let ordinal = 2; taken.has(id); ordinal++) id = `${base}-${ordinal}`;
  return id;
}

function canonicalJson(value: unknown): string {
  return JSON.stringify(value, (_, inner: unknown) =>
    typeof inner === 'object' && inner !== null && !Array.isArray(inner)
      ? Object.fromEntries(Object.entries(inner).sort(([a], [b]) => (a < b ? -1 : 1)))
      : inner,
  );
}
