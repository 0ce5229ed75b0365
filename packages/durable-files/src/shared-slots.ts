/** Memory of a fixed size that this thread fills, other threads read and the disk may take its bytes from. */
export interface Slot {
  readonly index: number;
  /** [SLOT_BYTES] over memory that threads share */
  readonly bytes: Uint8Array;
}

export const SLOT_BYTES = 1 << 21;

/** So many share a memory: WebAssembly sets gigabytes of addresses aside for each, though no more memory than is used. */
const SLOTS_TOGETHER = 16;
const PAGE_BYTES = 1 << 16;

/** As much of WebAssembly as is used here: Node's own types leave it out. */
interface WithWebAssembly {
  readonly WebAssembly?: {
    readonly Memory: new (limits: {
      readonly initial: number;
      readonly maximum: number;
      readonly shared: true;
    }) => { readonly buffer: SharedArrayBuffer };
  };
}

/**
 * A disk takes bytes only from memory that begins where a block of memory does, and of all that JavaScript can allocate
 * only WebAssembly's is sure to. Where there is none (`--jitless`, a limit on addresses), other memory does, but for
 * direct writing.
 */
function allocateShared(sizeBytes: number): SharedArrayBuffer {
  const { WebAssembly } = globalThis as WithWebAssembly;
  const pages = sizeBytes / PAGE_BYTES;
  try {
    if (WebAssembly !== undefined)
      return new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true }).buffer;
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
  }
  return new SharedArrayBuffer(sizeBytes);
}

const free: Slot[] = [];
let slotCount = 0;

/** As many are kept as were ever in use at once, and up to 15 more. */
export function takeSlot(): Slot {
  const slot = free.pop();
  if (slot !== undefined) return slot;
  const memory = allocateShared(SLOTS_TOGETHER * SLOT_BYTES);
  for (let i = SLOTS_TOGETHER - 1; i >= 0; i--) {
    free.push({ index: slotCount + i, bytes: new Uint8Array(memory, i * SLOT_BYTES, SLOT_BYTES) });
  }
  slotCount += SLOTS_TOGETHER;
  return free.pop()!;
}

export function giveSlotBack(slot: Slot): void {
  free.push(slot);
}
