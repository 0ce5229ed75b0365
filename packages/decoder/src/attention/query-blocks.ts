/**
 * Most columns whose queries attend together. Fewer make the products of a block slower than what is left out of the
 * upper triangle saves, more take memory (docs/log.md).
 */
export const QUERY_BLOCK_LENGTH = 512;

/**
 * Into how many equal blocks the queries of rows of `length` columns are cut: a power of four, so that few programs
 * serve rows of all lengths; 1 where they fit one block.
 */
function countQueryBlocks(length: number, blockLength = QUERY_BLOCK_LENGTH): number {
  let blocks = 1;
  while (length > blocks * blockLength) blocks *= 4;
  return blocks;
}

/** Rows of `length` columns, padded to whole blocks. */
export function cutIntoBlocks(
  length: number,
  blockLength?: number,
): { readonly length: number; readonly queryBlocks: number } {
  const queryBlocks = countQueryBlocks(length, blockLength);
  return { queryBlocks, length: queryBlocks * Math.ceil(length / queryBlocks) };
}

/** One thing, such as a program, for each number of query blocks: made when a batch first asks for it, and kept. */
export interface PerQueryBlocks<T> {
  take(queryBlocks: number): Promise<T>;
  /** All that were made. */
  readonly made: readonly T[];
}

export function perQueryBlocks<T>(make: (queryBlocks: number) => Promise<T>): PerQueryBlocks<T> {
  const asked = new Map<number, Promise<T>>();
  const made: T[] = [];
  const makeAndKeep = async (queryBlocks: number) => {
    const one = await make(queryBlocks);
    made.push(one);
    return one;
  };
  return {
    made,
    take: (queryBlocks) => {
      const known = asked.get(queryBlocks) ?? makeAndKeep(queryBlocks);
      asked.set(queryBlocks, known);
      return known;
    },
  };
}
