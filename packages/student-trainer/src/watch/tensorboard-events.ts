/**
 * Event files as TensorBoard reads them: TFRecord framing around the protocol buffer `Event`
 * (tensorflow/core/util/event.proto, tensorflow/core/framework/summary.proto). Five fields of it are all that scalars
 * need, so they are written by hand.
 */

/** A scalar's name and value; the value is stored as a float32. */
export type Scalar = readonly [tag: string, value: number];

/** What is read back from an event file. */
export interface ReadEvent {
  readonly step: number;
  /** Names of its scalars. */
  readonly tags: readonly string[];
}

const VARINT = 0;
const FIXED_64 = 1;
const BYTES = 2;
const FIXED_32 = 5;

const WALL_TIME = 1;
const STEP = 2;
const FILE_VERSION = 3;
const SUMMARY = 5;
const SESSION_LOG = 7;
const SUMMARY_VALUE = 1;
const VALUE_TAG = 1;
const SIMPLE_VALUE = 2;
const SESSION_STATUS = 1;
const SESSION_START = 1;

/** The event that begins a file. */
export const encodeVersion = (wallSeconds: number): Buffer =>
  frame(wallTime(wallSeconds), bytesField(FILE_VERSION, Buffer.from('brain.Event:2')));

/** Says that a run goes on: what a reader knows of `step` and later steps no longer holds. */
export const encodeRestart = (step: number, wallSeconds: number): Buffer =>
  frame(
    wallTime(wallSeconds),
    varintField(STEP, step),
    bytesField(SESSION_LOG, varintField(SESSION_STATUS, SESSION_START)),
  );

export function encodeScalars(step: number, scalars: readonly Scalar[], wallSeconds: number): Buffer {
  const values = scalars.map(([tag, value]) => {
    const number = Buffer.alloc(4);
    number.writeFloatLE(value);
    return bytesField(SUMMARY_VALUE, bytesField(VALUE_TAG, Buffer.from(tag)), key(SIMPLE_VALUE, FIXED_32), number);
  });
  return frame(wallTime(wallSeconds), varintField(STEP, step), bytesField(SUMMARY, ...values));
}

/**
 * The events of a file as far as it is whole: a killed writer leaves a last one that is cut off.
 * @returns each with the place where it ends, in bytes
 */
export function readEvents(file: Buffer): readonly { readonly event: ReadEvent; readonly end: number }[] {
  const events: { readonly event: ReadEvent; readonly end: number }[] = [];
  for (let at = 0; at + 12 <= file.length; ) {
    const head = file.subarray(at, at + 8);
    const length = Number(head.readBigUInt64LE());
    const end = at + 12 + length + 4;
    if (file.readUInt32LE(at + 8) !== maskedChecksum(head) || end > file.length) break;
    const data = file.subarray(at + 12, end - 4);
    if (file.readUInt32LE(end - 4) !== maskedChecksum(data)) break;
    events.push({ event: decodeEvent(data), end });
    at = end;
  }
  return events;
}

function decodeEvent(data: Buffer): ReadEvent {
  let step = 0;
  const tags: string[] = [];
  for (const { field, value } of readFields(data)) {
    if (field === STEP) step = Number(value);
    if (field !== SUMMARY) continue;
    for (const one of readFields(value as Buffer)) {
      const tag = [...readFields(one.value as Buffer)].find((inner) => inner.field === VALUE_TAG);
      if (tag !== undefined) tags.push((tag.value as Buffer).toString());
    }
  }
  return { step, tags };
}

function* readFields(data: Buffer): Generator<{ readonly field: number; readonly value: Buffer | bigint }> {
  let at = 0;
  const varint = () => {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = data[at++] ?? 0;
      value |= BigInt(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
  };
  while (at < data.length) {
    const tag = Number(varint());
    const [field, wire] = [tag >>> 3, tag & 7];
    if (wire === VARINT) yield { field, value: varint() };
    else {
      const length = wire === FIXED_64 ? 8 : wire === FIXED_32 ? 4 : Number(varint());
      yield { field, value: data.subarray(at, at + length) };
      at += length;
    }
  }
}

const key = (field: number, wire: number): Buffer => Buffer.from([(field << 3) | wire]);

function encodeVarint(value: number): Buffer {
  const bytes: number[] = [];
  let left = BigInt(value);
  while (left >= 0x80n) {
    bytes.push(Number(left & 0x7fn) | 0x80);
    left >>= 7n;
  }
  return Buffer.from([...bytes, Number(left)]);
}

const varintField = (field: number, value: number): Buffer => Buffer.concat([key(field, VARINT), encodeVarint(value)]);

function bytesField(field: number, ...parts: readonly Buffer[]): Buffer {
  const data = Buffer.concat(parts);
  return Buffer.concat([key(field, BYTES), encodeVarint(data.length), data]);
}

function wallTime(seconds: number): Buffer {
  const number = Buffer.alloc(8);
  number.writeDoubleLE(seconds);
  return Buffer.concat([key(WALL_TIME, FIXED_64), number]);
}

/** TFRecord: length, its checksum, the data, its checksum (tensorflow/core/lib/io/record_writer.h). */
function frame(...parts: readonly Buffer[]): Buffer {
  const data = Buffer.concat(parts);
  const head = Buffer.alloc(8);
  head.writeBigUInt64LE(BigInt(data.length));
  return Buffer.concat([head, checksumBytes(head), data, checksumBytes(data)]);
}

function checksumBytes(data: Buffer): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(maskedChecksum(data));
  return bytes;
}

/** CRC-32C, turned and shifted so that a checksum over data that holds checksums is sound. */
function maskedChecksum(data: Uint8Array): number {
  const crc = crc32c(data);
  return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0;
}

/** Of the Castagnoli polynomial, bits reversed. */
const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
  return crc;
});

/** CRC-32C (Castagnoli), as RFC 3720 has it. */
export function crc32c(data: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of data) crc = CRC_TABLE[(crc ^ byte) & 0xff]! ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}
