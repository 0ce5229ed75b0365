/** Writes numbers of `bits` bits each, the first bit of each first, into bytes; the last byte is filled with zeros. */
export function packBits(values: ArrayLike<number>, bits: number, out: Uint8Array, offset = 0): number {
  let held = 0;
  let heldBits = 0;
  let at = offset;
  const width = 2 ** bits;
  for (let i = 0; i < values.length; i++) {
    // At most 7 bits wait, so that up to 46 more fit into a double.
    held = held * width + values[i]!;
    heldBits += bits;
    while (heldBits >= 8) {
      heldBits -= 8;
      const unit = 2 ** heldBits;
      const byte = Math.floor(held / unit);
      out[at++] = byte;
      held -= byte * unit;
    }
  }
  if (heldBits > 0) out[at++] = held * 2 ** (8 - heldBits);
  return at - offset;
}

/** Reads what `packBits` wrote. */
export function unpackBits(bytes: Uint8Array, offset: number, bits: number, count: number): Float64Array {
  const values = new Float64Array(count);
  let held = 0;
  let heldBits = 0;
  let at = offset;
  for (let i = 0; i < count; i++) {
    while (heldBits < bits) {
      held = held * 256 + bytes[at++]!;
      heldBits += 8;
    }
    heldBits -= bits;
    const unit = 2 ** heldBits;
    values[i] = Math.floor(held / unit);
    held -= values[i]! * unit;
  }
  return values;
}

export const packedBytes = (count: number, bits: number): number => Math.ceil((count * bits) / 8);
