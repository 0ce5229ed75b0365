/**
 * Range asymmetric numeral systems (Duda, arXiv 1311.2540) over tables of symbol frequencies: an entropy coder that
 * gets within a fraction of a percent of the ideal length, without a bit of overhead for each symbol. The state is one
 * 31-bit number, renormalised by bytes; frequencies of a table add up to 2^14.
 */
export const FREQUENCY_BITS = 14;
export const FREQUENCY_SUM = 1 << FREQUENCY_BITS;

/** States lie in [LOWEST, 256 · LOWEST). */
const LOWEST = 1 << 23;

/** What coding needs of one table. */
export interface SymbolTable {
  /** [symbols], each at least 1, sum 2^14. */
  readonly frequencies: Uint16Array;
  /** [symbols] sum of the frequencies before. */
  readonly starts: Uint16Array;
  /** [2^14] the symbol at each slot. */
  readonly symbols: Uint8Array;
}

/**
 * @param frequencies at most 256, each at least 1
 * @throws RangeError if they do not add up to 2^14
 */
export function makeSymbolTable(frequencies: Uint16Array): SymbolTable {
  const starts = new Uint16Array(frequencies.length);
  const symbols = new Uint8Array(FREQUENCY_SUM);
  let sum = 0;
  frequencies.forEach((frequency, symbol) => {
    if (frequency < 1 || sum + frequency > FREQUENCY_SUM) throw new RangeError('symbol frequencies are out of range');
    starts[symbol] = sum;
    symbols.fill(symbol, sum, sum + frequency);
    sum += frequency;
  });
  if (sum !== FREQUENCY_SUM || frequencies.length > 256) throw new RangeError('symbol frequencies do not add up');
  return { frequencies, starts, symbols };
}

/** Takes symbols in reverse: the last put is the first that the decoder gives. */
export interface RansEncoder {
  put(symbol: number, table: SymbolTable): void;
  /** `bits` equally likely bits, at most 14. */
  putBits(value: number, bits: number): void;
  finish(): Uint8Array;
}

export function openRansEncoder(): RansEncoder {
  let state = LOWEST;
  let bytes = new Uint8Array(1 << 12);
  let length = 0;
  const emit = () => {
    if (length === bytes.length) {
      const longer = new Uint8Array(2 * length);
      longer.set(bytes);
      bytes = longer;
    }
    bytes[length++] = state & 0xff;
    state >>>= 8;
  };
  const push = (frequency: number, start: number) => {
    const limit = (LOWEST >> FREQUENCY_BITS) * 256 * frequency;
    while (state >= limit) emit();
    state = Math.trunc(state / frequency) * FREQUENCY_SUM + (state % frequency) + start;
  };
  return {
    put: (symbol, { frequencies, starts }) => push(frequencies[symbol]!, starts[symbol]!),
    putBits: (value, bits) => {
      const frequency = FREQUENCY_SUM >> bits;
      push(frequency, value * frequency);
    },
    finish: () => {
      for (let byte = 0; byte < 4; byte++) emit();
      return bytes.slice(0, length).reverse();
    },
  };
}

export interface RansDecoder {
  next(table: SymbolTable): number;
  nextBits(bits: number): number;
  /** @throws RangeError if the bytes were not all of one stream */
  finish(): void;
}

/** @throws RangeError here and from its methods when the bytes end too early */
export function openRansDecoder(bytes: Uint8Array): RansDecoder {
  if (bytes.length < 4) throw new RangeError('coded labels end too early');
  let state = ((bytes[0]! << 24) | (bytes[1]! << 16) | (bytes[2]! << 8) | bytes[3]!) >>> 0;
  if (state < LOWEST || state >= LOWEST * 256) throw new RangeError('coded labels do not begin with a state');
  let at = 4;
  const pull = (frequency: number, offset: number) => {
    state = frequency * (state >> FREQUENCY_BITS) + offset;
    while (state < LOWEST) {
      if (at >= bytes.length) throw new RangeError('coded labels end too early');
      state = (state << 8) | bytes[at++]!;
    }
  };
  return {
    next: ({ frequencies, starts, symbols }) => {
      const slot = state & (FREQUENCY_SUM - 1);
      const symbol = symbols[slot]!;
      pull(frequencies[symbol]!, slot - starts[symbol]!);
      return symbol;
    },
    nextBits: (bits) => {
      const slot = state & (FREQUENCY_SUM - 1);
      const value = slot >> (FREQUENCY_BITS - bits);
      const frequency = FREQUENCY_SUM >> bits;
      pull(frequency, slot - value * frequency);
      return value;
    },
    finish: () => {
      if (at !== bytes.length || state !== LOWEST) throw new RangeError('coded labels are damaged');
    },
  };
}
