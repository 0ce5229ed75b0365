import {
  type Address,
  addressRoom,
  type ForeignArgument,
  findFunction,
  loadLibrary,
  readText,
} from './foreign-functions.ts';
import type { NativeDevice } from './native-device.ts';

const p = 'pointer';

/** Functions of the CUDA driver API (cuda.h), 11.2 and later; `_v2` is what the header calls them without it. */
const FUNCTIONS = {
  cuInit: ['uint'],
  cuGetErrorName: ['int', p],
  cuGetErrorString: ['int', p],
  cuDeviceGet: [p, 'int'],
  cuDeviceGetName: [p, 'int', 'int'],
  cuDeviceTotalMem_v2: [p, 'int'],
  cuDevicePrimaryCtxRetain: [p, 'int'],
  cuDevicePrimaryCtxRelease_v2: ['int'],
  cuCtxSetCurrent: [p],
  cuDeviceGetDefaultMemPool: [p, 'int'],
  cuMemPoolSetAttribute: [p, 'int', p],
  cuMemPoolTrimTo: [p, 'size_t'],
  cuMemGetInfo_v2: [p, p],
  cuStreamCreate: [p, 'uint'],
  cuStreamSynchronize: [p],
  cuStreamDestroy_v2: [p],
  cuMemAllocAsync: [p, 'size_t', p],
  cuMemFreeAsync: [p, p],
  cuMemcpyHtoDAsync_v2: [p, p, 'size_t', p],
  cuMemcpyDtoHAsync_v2: [p, p, 'size_t', p],
  cuMemcpyDtoDAsync_v2: [p, p, 'size_t', p],
  cuMemsetD8Async: [p, 'uint8', 'size_t', p],
  cuMemsetD16Async: [p, 'uint16', 'size_t', p],
  cuMemsetD32Async: [p, 'uint', 'size_t', p],
  cuMemsetD2D32Async: [p, 'size_t', 'uint', 'size_t', 'size_t', p],
} as const;

type DriverFunction = keyof typeof FUNCTIONS;

const LIBRARY = process.platform === 'win32' ? 'nvcuda.dll' : 'libcuda.so.1';
const STREAM_NON_BLOCKING = 1;
/** Freed memory stays with the process for the next tensor. */
const POOL_RELEASE_THRESHOLD = 4;
const WORD_BYTES = 4;

interface CudaDriver {
  /** @throws Error in the driver's words */
  call(name: DriverFunction, ...given: readonly ForeignArgument[]): void;
  /** Calls a function whose first parameter is where it writes, and gives what it wrote. */
  make(name: DriverFunction, ...given: readonly ForeignArgument[]): Address;
  /** The first device. */
  readonly device: number;
}

/** Loads the driver and finds the first device. @throws Error in the loader's or the driver's words */
function loadCudaDriver(): CudaDriver {
  const library = loadLibrary(LIBRARY);
  const functions = Object.fromEntries(
    Object.entries(FUNCTIONS).map(([name, takes]) => [name, findFunction(library, name, 'int', takes)]),
  ) as Readonly<Record<DriverFunction, (...given: readonly ForeignArgument[]) => number>>;
  const textFrom = (name: 'cuGetErrorName' | 'cuGetErrorString', code: number) => {
    const room = addressRoom();
    return functions[name](code, room) === 0 ? readText(room[0]!) : String(code);
  };
  const call: CudaDriver['call'] = (name, ...given) => {
    const code = functions[name](...given);
    if (code === 0) return;
    throw new Error(`${name}: ${textFrom('cuGetErrorName', code)}, ${textFrom('cuGetErrorString', code)}`);
  };
  const make: CudaDriver['make'] = (name, ...given) => {
    const room = addressRoom();
    call(name, room, ...given);
    return room[0]!;
  };
  call('cuInit', 0);
  return { call, make, device: Number(make('cuDeviceGet', 0) & 0xffffffffn) };
}

/** Memory of the first CUDA device in bytes, whoever uses it; `undefined` where there is none. Takes none of it. */
export function measureCudaMemory(): number | undefined {
  try {
    const { make, device } = loadCudaDriver();
    return Number(make('cuDeviceTotalMem_v2', device));
  } catch {
    return undefined; // No driver or no device: who asks for CUDA all the same is told by openCudaDevice.
  }
}

/** Opens the first CUDA device. @throws Error in the loader's or the driver's words */
export function openCudaDevice(): NativeDevice {
  const { call, make, device } = loadCudaDriver();
  const label = Buffer.alloc(256);
  call('cuDeviceGetName', label, label.length, device);
  call('cuCtxSetCurrent', make('cuDevicePrimaryCtxRetain', device));
  const stream = make('cuStreamCreate', STREAM_NON_BLOCKING);
  const pool = make('cuDeviceGetDefaultMemPool', device);
  call('cuMemPoolSetAttribute', pool, POOL_RELEASE_THRESHOLD, BigUint64Array.of(2n ** 64n - 1n));
  const synchronize = () => call('cuStreamSynchronize', stream);

  const allocate = (sizeBytes: number): Address => make('cuMemAllocAsync', sizeBytes, stream);
  return {
    name: label.toString('utf8', 0, label.indexOf(0)),
    stream,
    allocate,
    allocateZeros(sizeBytes) {
      const address = allocate(sizeBytes);
      call('cuMemsetD8Async', address, 0, sizeBytes, stream);
      return address;
    },
    free: (address) => call('cuMemFreeAsync', address, stream),
    write: (to, data) => call('cuMemcpyHtoDAsync_v2', to, data, data.byteLength, stream),
    read(from, into) {
      call('cuMemcpyDtoHAsync_v2', into, from, into.byteLength, stream);
      synchronize();
    },
    copy: (from, to, sizeBytes) => call('cuMemcpyDtoDAsync_v2', to, from, sizeBytes, stream),
    fill(address, pattern, count) {
      const bytes = Buffer.from(pattern.buffer, pattern.byteOffset, pattern.byteLength);
      if (bytes.length === 1) call('cuMemsetD8Async', address, bytes[0]!, count, stream);
      else if (bytes.length === 2) call('cuMemsetD16Async', address, bytes.readUInt16LE(), count, stream);
      else if (bytes.length === WORD_BYTES) call('cuMemsetD32Async', address, bytes.readUInt32LE(), count, stream);
      else {
        // The driver sets words of 32 bits at most: the halves one after the other, each a column of a matrix.
        for (const at of [0, WORD_BYTES]) {
          const half = bytes.readUInt32LE(at);
          call('cuMemsetD2D32Async', address + BigInt(at), bytes.length, half, 1, count, stream);
        }
      }
    },
    synchronize,
    trim() {
      synchronize();
      call('cuMemPoolTrimTo', pool, 0);
    },
    measureMemory() {
      const [free, total] = [addressRoom(), addressRoom()];
      call('cuMemGetInfo_v2', free, total);
      return { usedBytes: Number(total[0]! - free[0]!), totalBytes: Number(total[0]!) };
    },
    close() {
      synchronize();
      call('cuStreamDestroy_v2', stream);
      call('cuMemPoolTrimTo', pool, 0);
      call('cuDevicePrimaryCtxRelease_v2', device);
    },
  };
}
