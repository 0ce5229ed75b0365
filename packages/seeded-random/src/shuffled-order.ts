import { openSplitmix32 } from './splitmix32.ts';

/**
 * A permutation of 0..count-1 (Fisher-Yates) that depends on nothing but the arguments.
 * @param source which of several sets of `count` it is of: two of one size have orders of their own
 */
export function shuffledOrder(count: number, seed: number, epoch: number, source = 0): Int32Array {
  const order = Int32Array.from({ length: count }, (_, i) => i);
  const state = Math.imul(seed + 1, 0x85ebca6b) ^ Math.imul(epoch + 1, 0xc2b2ae35) ^ Math.imul(source, 0x27d4eb2f);
  const nextWord = openSplitmix32(state);
  for (let i = count - 1; i > 0; i--) {
    const j = Math.floor((nextWord() / 2 ** 32) * (i + 1));
    [order[i], order[j]] = [order[j]!, order[i]!];
  }
  return order;
}
