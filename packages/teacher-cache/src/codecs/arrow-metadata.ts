import { Message, type Schema } from 'apache-arrow';
import { Footer } from 'apache-arrow/ipc/metadata/file';

/**
 * The metadata of Arrow files: footers, and the headers of messages (Apache Arrow, "Schema.fbs", "File.fbs",
 * "Message.fbs"). They are FlatBuffers, and the library believes every length in them: a flipped bit makes it collect a
 * thousand million entries out of a hundred bytes. So lengths are held against the bytes first.
 */

/** What a slot of a table leads to: a table, or a vector of tables or of entries of so many bytes. */
type Reference = { readonly to: () => Table } | { readonly vectorOf: number | (() => Table) };
/** The references of a table by slot; slots that hold a number or a string need no check. */
type Table = Readonly<Record<number, Reference>>;

const KEY_VALUE: Table = {};
const FIELD: Table = { 5: { vectorOf: () => FIELD }, 6: { vectorOf: () => KEY_VALUE } };
const SCHEMA: Table = { 1: { vectorOf: () => FIELD }, 2: { vectorOf: () => KEY_VALUE }, 3: { vectorOf: 8 } };
const FOOTER: Table = {
  1: { to: () => SCHEMA },
  2: { vectorOf: 24 },
  3: { vectorOf: 24 },
  4: { vectorOf: () => KEY_VALUE },
};
const RECORD_BATCH: Table = { 1: { vectorOf: 16 }, 2: { vectorOf: 16 }, 4: { vectorOf: 8 } };
const MESSAGE: Table = { 2: { to: () => RECORD_BATCH }, 4: { vectorOf: () => KEY_VALUE } };

const REFERENCE_BYTES = 4;

/**
 * Walks all vectors of a FlatBuffer ("FlatBuffer Internals": a table begins with the distance to its vtable, which has
 * the place of each slot).
 * @throws Error where a vector has more entries than there are bytes, RangeError where a reference leads out of them
 */
function requireBounded(bytes: Uint8Array, root: Table): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const follow = (at: number) => at + view.getInt32(at, true);
  // Each table has bytes of its own, so there are no more of them, unless some are reached again and again.
  let tablesLeft = bytes.length / REFERENCE_BYTES;
  const visit = (at: number, table: Table): void => {
    if (--tablesLeft < 0) throw new Error('its metadata has tables within themselves');
    const vtable = at - view.getInt32(at, true);
    const vtableBytes = view.getInt16(vtable, true);
    for (const [slot, reference] of Object.entries(table)) {
      const place = 4 + 2 * Number(slot);
      const offset = place < vtableBytes ? view.getInt16(vtable + place, true) : 0;
      if (offset === 0) continue;
      const target = follow(at + offset);
      if ('to' in reference) {
        visit(target, reference.to());
        continue;
      }
      const { vectorOf } = reference;
      const count = view.getInt32(target, true);
      const first = target + 4;
      const entryBytes = typeof vectorOf === 'number' ? vectorOf : REFERENCE_BYTES;
      if (count < 0 || first + count * entryBytes > bytes.length) {
        throw new Error(`its metadata says that a list has ${count} entries and holds fewer`);
      }
      if (typeof vectorOf === 'number') continue;
      for (let i = 0; i < count; i++) visit(follow(first + i * REFERENCE_BYTES), vectorOf());
    }
  };
  visit(follow(0), root);
}

/** Where a record batch stands in the file: its header, which the body follows. */
export interface BatchBlock {
  readonly offset: number;
  readonly metaDataLength: number;
  readonly bodyLength: number;
}

export interface ArrowFooter {
  readonly schema: Schema;
  readonly blocks: readonly BatchBlock[];
}

/**
 * @param sizeBytes of the whole file, in which the blocks must lie
 * @throws Error, RangeError if the footer is damaged
 */
export function decodeFooter(bytes: Uint8Array, sizeBytes: number): ArrowFooter {
  requireBounded(bytes, FOOTER);
  const footer = Footer.decode(bytes);
  const blocks = Array.from({ length: footer.numRecordBatches }, (_, i) => {
    const block = footer.getRecordBatch(i)!;
    const { offset, metaDataLength, bodyLength } = block;
    const isInside = offset >= 0 && bodyLength >= 0 && offset + metaDataLength + bodyLength <= sizeBytes;
    if (metaDataLength < 8 || !isInside) throw new Error(`batch ${i} leads out of the file`);
    return block;
  });
  return { schema: footer.schema, blocks };
}

/**
 * The header of a record batch. Four bytes mark a message, four give its length; both stand before it.
 * @param bytes of its block, with the body or without
 * @throws Error, RangeError if it is damaged or something else
 */
export function decodeBatchHeader(bytes: Uint8Array, { metaDataLength }: BatchBlock) {
  const header = bytes.subarray(8, metaDataLength);
  requireBounded(header, MESSAGE);
  const message = Message.decode(header);
  if (!message.isRecordBatch()) throw new Error('a batch is something else');
  return message.header();
}
