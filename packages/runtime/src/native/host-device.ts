import {
  type Address,
  type ForeignArgument,
  type ForeignFunction,
  findFunction,
  loadLibrary,
  NO_ADDRESS,
} from './foreign-functions.ts';
import type { NativeDevice } from './native-device.ts';

/** The widest registers load 64 bytes: what is not aligned to them costs two lines of cache a load. */
const ALIGNMENT_BYTES = 64;
/** Elements of a pattern that are written at a time. */
const PATTERN_ELEMENTS = 1 << 16;

/** The C library; on Windows the one that every process has. */
const LIBRARY = process.platform === 'win32' ? 'ucrtbase.dll' : null;

/**
 * Main memory, from the C library: it comes back when it is freed, which arrays of JavaScript do when it suits them.
 */
export function openHostDevice(): NativeDevice {
  const library = loadLibrary(LIBRARY);
  const calloc = findFunction(library, 'calloc', 'pointer', ['size_t', 'size_t']);
  const malloc = findFunction(library, 'malloc', 'pointer', ['size_t']);
  const free = findFunction(library, 'free', 'void', ['pointer']);
  const memmove = findFunction(library, 'memmove', 'pointer', ['pointer', 'pointer', 'size_t']);
  const memset = findFunction(library, 'memset', 'pointer', ['pointer', 'int', 'size_t']);
  const trim = findTrim(library);
  /** What the C library knows each address as. */
  const starts = new Map<Address, Address>();

  function align(sizeBytes: number, start: Address): Address {
    if (start === NO_ADDRESS) throw new Error(`out of memory: ${sizeBytes} bytes could not be allocated`);
    const mask = BigInt(ALIGNMENT_BYTES - 1);
    const address = (start + mask) & ~mask;
    starts.set(address, start);
    return address;
  }
  const move = (to: ForeignArgument, from: ForeignArgument, sizeBytes: number) => void memmove(to, from, sizeBytes);

  return {
    name: 'main memory',
    stream: NO_ADDRESS,
    allocate: (sizeBytes) => align(sizeBytes, malloc(sizeBytes + ALIGNMENT_BYTES)),
    allocateZeros: (sizeBytes) => align(sizeBytes, calloc(1, sizeBytes + ALIGNMENT_BYTES)),
    free(address) {
      free(starts.get(address)!);
      starts.delete(address);
    },
    write: (to, data) => move(to, data, data.byteLength),
    read: (from, into) => move(into, from, into.byteLength),
    copy: (from, to, sizeBytes) => move(to, from, sizeBytes),
    fill(address, pattern, count) {
      const size = pattern.length;
      if (pattern.every((byte) => byte === pattern[0])) {
        memset(address, pattern[0]!, size * count);
        return;
      }
      const block = Buffer.alloc(size * Math.min(count, PATTERN_ELEMENTS), pattern);
      for (let done = 0; done < count; done += PATTERN_ELEMENTS) {
        move(address + BigInt(size * done), block, size * Math.min(PATTERN_ELEMENTS, count - done));
      }
    },
    synchronize: () => {},
    trim: () => void trim?.(0),
    measureMemory: () => undefined,
    close: () => {},
  };
}

/** Only glibc has it, and keeps what is freed in small pieces without. */
function findTrim(library: ReturnType<typeof loadLibrary>): ForeignFunction<'int'> | undefined {
  try {
    return findFunction(library, 'malloc_trim', 'int', ['size_t']);
  } catch {
    return undefined;
  }
}
