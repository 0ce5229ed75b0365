import type { ZstdCodec } from './zstd.ts';

/**
 * Arrays of whole numbers as byte planes: all lowest bytes, then all second bytes and so on, each plane stored in the
 * shortest of three ways. Neighbouring numbers differ in their low bytes; the high planes all but vanish.
 *
 * A plane is one byte that says how it is stored, its stored length as LEB128 unless constant, and its bytes:
 * 0 as it is, 1 one byte for all, 2 a zstd frame.
 */
const STORED = { plain: 0, constant: 1, zstd: 2 } as const;

/** Planes shorter than this are not worth a frame. */
const SHORTEST_FRAME = 24;

export interface PlaneWriter {
  /** Adds the lowest `bytes` bytes of each number. */
  add(numbers: ArrayLike<number>, bytes: number): void;
  finish(): Uint8Array;
}

export function openPlaneWriter(zstd: ZstdCodec): PlaneWriter {
  const parts: Uint8Array[] = [];
  return {
    add: (numbers, bytes) => {
      for (let byte = 0; byte < bytes; byte++) {
        const plane = new Uint8Array(numbers.length);
        const shift = 8 * byte;
        for (let i = 0; i < plane.length; i++) plane[i] = numbers[i]! >>> shift;
        parts.push(...storePlane(plane, zstd));
      }
    },
    finish: () => new Uint8Array(Buffer.concat(parts)),
  };
}

function* storePlane(plane: Uint8Array, zstd: ZstdCodec): Generator<Uint8Array> {
  if (plane.length === 0) return;
  if (plane.every((byte) => byte === plane[0])) return yield Uint8Array.of(STORED.constant, plane[0]!);
  const frame = plane.length < SHORTEST_FRAME ? plane : zstd.compress(plane);
  const isSmaller = frame.length < plane.length;
  yield Uint8Array.of(isSmaller ? STORED.zstd : STORED.plain, ...leb128(isSmaller ? frame.length : plane.length));
  yield isSmaller ? frame : plane;
}

function leb128(value: number): number[] {
  const bytes: number[] = [];
  let rest = value;
  while (rest >= 0x80) {
    bytes.push((rest & 0x7f) | 0x80);
    rest >>>= 7;
  }
  bytes.push(rest);
  return bytes;
}

export interface PlaneReader {
  /** The next `length` numbers of `bytes` bytes each, unsigned up to 4 bytes. @throws RangeError on damage */
  read(length: number, bytes: number): Uint32Array;
  /** @throws RangeError if something is left */
  finish(): void;
}

export function openPlaneReader(packed: Uint8Array, zstd: ZstdCodec): PlaneReader {
  let at = 0;
  const next = () => {
    if (at >= packed.length) throw new RangeError('packed labels end too early');
    return packed[at++]!;
  };
  const length = () => {
    let value = 0;
    for (let shift = 0; shift < 35; shift += 7) {
      const byte = next();
      value += (byte & 0x7f) * 2 ** shift;
      if (byte < 0x80) return value;
    }
    throw new RangeError('a length of packed labels is too long');
  };
  const take = (count: number) => {
    if (at + count > packed.length) throw new RangeError('packed labels end too early');
    const bytes = packed.subarray(at, at + count);
    at += count;
    return bytes;
  };
  const readPlane = (count: number): Uint8Array | number => {
    const stored = next();
    if (stored === STORED.constant) return next();
    const bytes = take(length());
    if (stored === STORED.zstd) return zstd.decompress(bytes, count);
    if (stored !== STORED.plain || bytes.length !== count) throw new RangeError('a plane of packed labels is damaged');
    return bytes;
  };
  return {
    read: (count, bytes) => {
      const numbers = new Uint32Array(count);
      if (count === 0) return numbers;
      for (let byte = 0; byte < bytes; byte++) {
        const plane = readPlane(count);
        const shift = 8 * byte;
        if (typeof plane !== 'number') for (let i = 0; i < count; i++) numbers[i]! |= plane[i]! << shift;
        else if (plane !== 0) for (let i = 0; i < count; i++) numbers[i]! |= plane << shift;
      }
      return numbers;
    },
    finish: () => {
      if (at !== packed.length) throw new RangeError('there is more than the packed labels');
    },
  };
}
