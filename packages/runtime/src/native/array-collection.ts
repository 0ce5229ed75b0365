import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

/** V8 does not hurry to collect a few large arrays, so they are collected once this much has been left behind. */
const COLLECT_AFTER_BYTES = 256 * 2 ** 20;

/** Takes back the memory of arrays that came with messages and have been copied to where tensors are. */
export interface ArrayCollection {
  /** Counts an array that nothing holds any more. */
  leave(sizeBytes: number): void;
  /** Collects what has been left. */
  collect(): void;
}

export function createArrayCollection(): ArrayCollection {
  setFlagsFromString('--expose-gc');
  const collectGarbage = runInNewContext('gc') as (options?: { type: 'minor' }) => void;
  let leftBytes = 0;
  const collect = () => {
    if (leftBytes === 0) return;
    leftBytes = 0;
    collectGarbage();
    // V8 frees array memory in the background after a collection; the next collection waits for that.
    collectGarbage({ type: 'minor' });
  };
  return {
    leave(sizeBytes) {
      leftBytes += sizeBytes;
      if (leftBytes >= COLLECT_AFTER_BYTES) collect();
    },
    collect,
  };
}
