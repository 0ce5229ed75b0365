import type { JsonObject } from './fields.ts';
import { isGsm8k, readGsm8k } from './gsm8k.ts';
import { type ReadOptions, type RecordKind, readRecords } from './records.ts';
import type { DataRow, RowMetadata } from './row-content.ts';
import { listForms, ROW_FORMS, readContent } from './row-forms.ts';

const ROW: RecordKind = { name: 'row', forms: ROW_FORMS, idSource: 'the content' };

/**
 * Reads a JSON-lines file of rows: `{"messages"}`, `{"prompt", "response"}`, GSM8K's `{"question", "answer"}`,
 * `{"text"}` or `{"input_ids", "loss_mask"}`, each with optional `id`, `task`, `split`, `answer` and `source`,
 * `messages` also with `tools`; other keys are ignored and empty lines skipped. Rows are yielded as they are read, so a
 * fault further down shows when it is reached.
 *
 * A row without an id gets the first 16 hexadecimal digits of the sha256 of its JSON with sorted keys: the id survives
 * reordering and other rows coming and going. Equal rows are told apart by `-2`, `-3` and so on.
 *
 * @throws StillhouseError DATA_NOT_READABLE, DATA_EMPTY, DATA_NOT_UTF8, DATA_NOT_JSON, ROW_FORM, ROW_TYPE,
 *   ROW_ID_DUPLICATE, ROW_LOSS_MASK, ROW_NO_ASSISTANT
 */
export async function* readDataRows(path: string, options: ReadOptions = {}): AsyncGenerator<DataRow> {
  for await (const { id, line, where, metadata, value } of readRecords(path, ROW, options)) {
    yield { id, line, ...readRow(value, metadata, where) };
  }
}

/** GSM8K's keys make a row where nothing else does: rows of other forms may carry them besides. */
function readRow(row: JsonObject, metadata: RowMetadata, where: string): Pick<DataRow, 'metadata' | 'content'> {
  if (isGsm8k(row) && listForms(row).length === 0) return readGsm8k(row, metadata, where);
  return { metadata, content: readContent(row, where) };
}
