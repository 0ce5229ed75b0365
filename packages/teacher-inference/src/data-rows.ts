import { createHash } from 'node:crypto';
import { StillhouseError } from '@stillhouse/errors';
import { readLines } from './json-lines.ts';
import type { DataRow } from './row-content.ts';
import { parseRow } from './row-forms.ts';

export type { DataRow, RowContent, RowMetadata } from './row-content.ts';

/**
 * Reads a JSON-lines file of rows: `{"messages"}`, `{"prompt", "response"}`, `{"text"}` or `{"input_ids", "loss_mask"}`,
 * each with optional `id`, `task`, `split`, `answer` and `source`, `messages` also with `tools`; other keys are ignored
 * and empty lines skipped. Rows are yielded as they are read, so a fault further down shows when it is reached.
 *
 * A row without an id gets the first 16 hexadecimal digits of the sha256 of its JSON with sorted keys: the id survives
 * reordering and other rows coming and going. Equal rows are told apart by `-2`, `-3` and so on.
 *
 * @throws StillhouseError DATA_NOT_READABLE, DATA_EMPTY, DATA_NOT_UTF8, DATA_NOT_JSON, ROW_FORM, ROW_TYPE,
 *   ROW_ID_DUPLICATE, ROW_LOSS_MASK, ROW_NO_ASSISTANT
 */
export async function* readDataRows(path: string, options: { readonly limit?: number } = {}): AsyncGenerator<DataRow> {
  const limit = options.limit ?? Number.POSITIVE_INFINITY;
  const lineOfId = new Map<string, number>();
  if (limit <= 0) return;
  for await (const { number: line, text } of readLines(path)) {
    if (text.trim() === '') continue;
    const where = `${path}, line ${line}`;
    const { givenId, metadata, content, value } = parseRow(text, where);
    const id = givenId ?? deriveId(value, lineOfId);
    const earlier = lineOfId.get(id);
    if (earlier !== undefined) {
      throw new StillhouseError({
        code: 'ROW_ID_DUPLICATE',
        where,
        problem: `the id ${JSON.stringify(id)} is that of line ${earlier} already`,
        expected: 'an id of its own for every row',
        remedy: 'Rename one of the two, or leave ids out to have them derived from the content',
      });
    }
    lineOfId.set(id, line);
    yield { id, line, metadata, content };
    if (lineOfId.size >= limit) return;
  }
  if (lineOfId.size === 0) {
    throw new StillhouseError({
      code: 'DATA_EMPTY',
      where: path,
      problem: 'the file holds no rows',
      expected: 'one JSON object a line',
    });
  }
}

function deriveId(value: Readonly<Record<string, unknown>>, taken: ReadonlyMap<string, number>): string {
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
