import type { Address } from './foreign-functions.ts';

/** Memory in which tensors are, in the order of one stream. All sizes are bytes. */
export interface NativeDevice {
  readonly name: string;
  /** The stream (CUstream) in which everything happens; none for main memory. */
  readonly stream: Address;
  /** What it held before is not told. @throws Error that says out of memory where there is none left */
  allocate(sizeBytes: number): Address;
  /** As `allocate`, all bytes zero. */
  allocateZeros(sizeBytes: number): Address;
  free(address: Address): void;
  /** `data` may be changed as soon as this returns. */
  write(to: Address, data: NodeJS.ArrayBufferView): void;
  /** Waits for all that was asked before. */
  read(from: Address, into: NodeJS.ArrayBufferView): void;
  copy(from: Address, to: Address, sizeBytes: number): void;
  /** Repeats a pattern of 1, 2, 4 or 8 bytes. */
  fill(address: Address, pattern: Uint8Array, count: number): void;
  /** Waits until all that was asked is done. */
  synchronize(): void;
  /** Gives back freed memory that the process still holds. */
  trim(): void;
  /** Of a device with memory of its own: what is taken, by whomever, and all of it. */
  measureMemory(): { readonly usedBytes: number; readonly totalBytes: number } | undefined;
  close(): void;
}
