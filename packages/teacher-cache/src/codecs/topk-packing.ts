import type { TopKLabels } from '../format/labelled-row.ts';
import { LARGEST_BUFFER_BYTES } from './arrow-file-writer.ts';
import { openPlaneReader, openPlaneWriter } from './byte-planes.ts';
import {
  decodeLogprobs,
  decodeLogZ,
  ENTRY_BYTES,
  encodeLogprobs,
  encodeLogZ,
  type LogprobDtype,
  ODDS_BYTES,
} from './logprob-codes.ts';
import type { ZstdCodec } from './zstd.ts';

/** What a reader knows of a row's labels before it unpacks them. */
export interface PackedShape {
  readonly positions: number;
  readonly temperatures: number;
  /** The most entries that a position may have. */
  readonly k: number;
  readonly vocabSize: number;
}

/** Entries of a row: as many as a plain column can hold. */
const MOST_ENTRIES = LARGEST_BUFFER_BYTES / 4;

/** Bytes of an id: two up to 65,536 ids, three up to 16,777,216. */
export const idBytes = (vocabSize: number) => (vocabSize <= 0x1_0000 ? 2 : vocabSize <= 0x100_0000 ? 3 : 4);

/**
 * The top-k labels of one row as bytes: byte planes (see `byte-planes.ts`) of the counts (2 bytes), the ids, the
 * differences of the logprob codes, for `uint8` and `uint16` the log odds (2 and 3 bytes), and log_z, temperature by
 * temperature (4 bytes).
 */
export function packTopK(labels: TopKLabels, dtype: LogprobDtype, vocabSize: number, zstd: ZstdCodec): Uint8Array {
  const { counts, ids, logprobs, logZ } = labels;
  const planes = openPlaneWriter(zstd);
  const { entries, odds } = encodeLogprobs(logprobs, counts, dtype);
  planes.add(counts, 2);
  planes.add(ids, idBytes(vocabSize));
  planes.add(takeDifferences(entries, counts), ENTRY_BYTES[dtype]);
  if (odds !== undefined) planes.add(odds, ODDS_BYTES[dtype]);
  const codes = encodeLogZ(logZ, dtype);
  const grid = counts.length === 0 ? 0 : logZ.length / counts.length;
  for (let t = 0; t < grid; t++) {
    planes.add(
      Uint32Array.from(counts, (_, position) => codes[position * grid + t]!),
      4,
    );
  }
  return planes.finish();
}

/**
 * What `packTopK` packed; ids are not held against the vocabulary here.
 * @throws RangeError if the bytes are not such labels; nothing is allocated beyond positions x k entries
 */
export function unpackTopK(packed: Uint8Array, shape: PackedShape, dtype: LogprobDtype, zstd: ZstdCodec): TopKLabels {
  const { positions, temperatures, k, vocabSize } = shape;
  const planes = openPlaneReader(packed, zstd);
  const counts = new Int32Array(planes.read(positions, 2).buffer);
  let total = 0;
  for (const count of counts) {
    if (count < 1 || count > k) throw new RangeError(`a position has ${count} entries, allowed are 1 to ${k}`);
    total += count;
  }
  if (total > MOST_ENTRIES) throw new RangeError(`there are ${total} entries, allowed are ${MOST_ENTRIES}`);
  const ids = new Int32Array(planes.read(total, idBytes(vocabSize)).buffer);
  const entries = planes.read(total, ENTRY_BYTES[dtype]);
  addDifferences(entries, counts, ENTRY_BYTES[dtype]);
  const odds = ODDS_BYTES[dtype] > 0 ? { odds: planes.read(positions, ODDS_BYTES[dtype]) } : {};
  const codes = new Uint32Array(positions * temperatures);
  for (let t = 0; t < temperatures; t++) {
    const column = planes.read(positions, 4);
    for (let position = 0; position < positions; position++) codes[position * temperatures + t] = column[position]!;
  }
  planes.finish();
  return {
    counts,
    ids,
    logprobs: decodeLogprobs({ entries, ...odds }, counts, dtype),
    logZ: decodeLogZ(codes, dtype),
  };
}

/** What readers will see of labels that are packed. */
export function roundTopK(labels: TopKLabels, dtype: LogprobDtype): TopKLabels {
  const { counts, logprobs, logZ } = labels;
  return {
    ...labels,
    logprobs: decodeLogprobs(encodeLogprobs(logprobs, counts, dtype), counts, dtype),
    logZ: decodeLogZ(encodeLogZ(logZ, dtype), dtype),
  };
}

/** Each code less the one before it in its position, modulo 2^32: logprobs descend, so few high bytes occur. */
function takeDifferences(codes: Uint32Array, counts: Int32Array): Uint32Array {
  const differences = new Uint32Array(codes.length);
  let start = 0;
  for (const count of counts) {
    for (let i = start; i < start + count; i++) differences[i] = codes[i]! - (i > start ? codes[i - 1]! : 0);
    start += count;
  }
  return differences;
}

function addDifferences(codes: Uint32Array, counts: Int32Array, bytes: number): void {
  const mask = bytes === 4 ? -1 : (1 << (8 * bytes)) - 1;
  let start = 0;
  for (const count of counts) {
    for (let i = start + 1; i < start + count; i++) codes[i] = (codes[i]! + codes[i - 1]!) & mask;
    start += count;
  }
}
