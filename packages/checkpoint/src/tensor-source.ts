import { type FileHandle, open, realpath } from 'node:fs/promises';
import { StillhouseError } from '@stillhouse/errors';
import { widenBfloat16, widenFloat16 } from '@stillhouse/float-formats';
import { LENGTH_FIELD_BYTES, parseHeader, parseHeaderLength, type TensorInfo } from './safetensors-header.ts';
import { countElements, elementBytes, formatTensorType, isStoredFloat, type StoredFloatDtype } from './stored-dtype.ts';

/** What {@link TensorSource.readInt} gives: the typed array natural for the stored dtype. */
export type TensorArray =
  | Uint8Array<ArrayBuffer>
  | Int8Array<ArrayBuffer>
  | Uint16Array<ArrayBuffer>
  | Int16Array<ArrayBuffer>
  | Uint32Array<ArrayBuffer>
  | Int32Array<ArrayBuffer>
  | BigUint64Array<ArrayBuffer>
  | BigInt64Array<ArrayBuffer>;

/**
 * The tensors of one safetensors file or of a sharded set. Only headers are in memory; every read takes a tensor's
 * bytes from disk into memory of its own, so that its buffer can be transferred to a worker.
 *
 * Reads throw StillhouseError TENSOR_UNKNOWN, TENSOR_DTYPE, SAFETENSORS_TRUNCATED (the file shrank since it was opened).
 */
export interface TensorSource {
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  /** The stored bytes in a fresh ArrayBuffer that holds nothing else. */
  readRaw(name: string): Promise<Uint8Array<ArrayBuffer>>;
  /** Any float dtype as float32; exact but for float64, which is rounded. */
  readFloat32(name: string): Promise<Float32Array<ArrayBuffer>>;
  /** Any float dtype as float64; exact. */
  readFloat64(name: string): Promise<Float64Array<ArrayBuffer>>;
  /** Integers and booleans (0 or 1) as stored. */
  readInt(name: string): Promise<TensorArray>;
  /** Calls `visit` with the tensor's stored bytes in order, in pieces that are valid until it returns. */
  readPieces(name: string, visit: (piece: Uint8Array<ArrayBuffer>) => void): Promise<void>;
  close(): Promise<void>;
}

/** A multiple of every element size; bounds the memory that conversion takes. */
const PIECE_BYTES = 4 << 20;
/** One system call cannot read 2 GiB. */
const MAX_READ_BYTES = 1 << 30;

export interface TensorFile {
  readonly tensors: readonly TensorInfo[];
  readonly handle: FileHandle;
}

/**
 * Opens one file and reads its header.
 * @throws StillhouseError CHECKPOINT_FILE_UNREADABLE and those of `parseHeader`
 */
export async function openTensorFile(path: string): Promise<TensorFile> {
  const { file, handle } = await openResolved(path);
  try {
    const { size } = await handle.stat();
    const field = new Uint8Array(Math.min(LENGTH_FIELD_BYTES, size));
    await readFully(handle, file, field, 0);
    const header = new Uint8Array(parseHeaderLength(file, field, size));
    await readFully(handle, file, header, LENGTH_FIELD_BYTES);
    return { tensors: parseHeader(file, header, size), handle };
  } catch (error) {
    await handle.close();
    throw error;
  }
}

async function openResolved(path: string): Promise<{ readonly file: string; readonly handle: FileHandle }> {
  try {
    const file = await realpath(path);
    const handle = await open(file, 'r');
    if ((await handle.stat()).isFile()) return { file, handle };
    await handle.close();
  } catch (cause) {
    throw new StillhouseError({
      code: 'CHECKPOINT_FILE_UNREADABLE',
      where: path,
      problem: `the file cannot be opened (${(cause as NodeJS.ErrnoException).code ?? 'unknown reason'})`,
      cause,
    });
  }
  throw new StillhouseError({ code: 'CHECKPOINT_FILE_UNREADABLE', where: path, problem: 'this is not a file' });
}

async function readFully(handle: FileHandle, file: string, into: Uint8Array, offsetBytes: number): Promise<void> {
  let done = 0;
  while (done < into.length) {
    const length = Math.min(into.length - done, MAX_READ_BYTES);
    const { bytesRead } = await handle.read(into, done, length, offsetBytes + done);
    if (bytesRead === 0) {
      throw new StillhouseError({
        code: 'SAFETENSORS_TRUNCATED',
        where: file,
        problem: 'the file became shorter while it was read',
        expected: `at least ${offsetBytes + into.length} bytes`,
        got: `${offsetBytes + done}`,
      });
    }
    done += bytesRead;
  }
}

/**
 * Opens a safetensors file.
 * @throws StillhouseError CHECKPOINT_FILE_UNREADABLE, SAFETENSORS_* (see `parseHeader`)
 */
export async function openSafetensors(file: string): Promise<TensorSource> {
  const { tensors, handle } = await openTensorFile(file);
  return createTensorSource(
    file,
    tensors.map((info) => ({ info, handle })),
    [handle],
  );
}

/** Joins tensors of open files; `where` names the whole in messages. The source closes `handles`. */
export function createTensorSource(
  where: string,
  located: readonly { readonly info: TensorInfo; readonly handle: FileHandle }[],
  handles: readonly FileHandle[],
): TensorSource {
  const byName = new Map(located.map((tensor) => [tensor.info.name, tensor]));
  const locate = (name: string) => {
    const tensor = byName.get(name);
    if (tensor !== undefined) return tensor;
    throw new StillhouseError({ code: 'TENSOR_UNKNOWN', where, problem: `there is no tensor ${name}` });
  };
  const readRaw = async (name: string) => {
    const { info, handle } = locate(name);
    const bytes = new Uint8Array(info.sizeBytes);
    await readFully(handle, info.file, bytes, info.offsetBytes);
    return bytes;
  };
  const readPieces = async (name: string, visit: (piece: Uint8Array<ArrayBuffer>) => void) => {
    const { info, handle } = locate(name);
    const scratch = new Uint8Array(Math.min(PIECE_BYTES, info.sizeBytes));
    for (let done = 0; done < info.sizeBytes; done += scratch.length) {
      const piece = scratch.subarray(0, Math.min(scratch.length, info.sizeBytes - done));
      await readFully(handle, info.file, piece, info.offsetBytes + done);
      visit(piece);
    }
  };
  const readFloats = async <Out extends Float32Array<ArrayBuffer> | Float64Array<ArrayBuffer>>(
    name: string,
    allocate: (length: number) => Out,
  ): Promise<Out> => {
    const { info } = locate(name);
    const { dtype } = info;
    if (!isStoredFloat(dtype)) throw wrongDtype(info, 'a float dtype');
    const out = allocate(countElements(info.shape));
    let done = 0;
    await readPieces(name, (piece) => {
      const length = piece.length / elementBytes(dtype);
      widenPiece(piece, dtype, out.subarray(done, done + length) as Out);
      done += length;
    });
    return out;
  };
  let closing: Promise<unknown> | undefined;
  return {
    tensors: new Map(located.map(({ info }) => [info.name, info])),
    readRaw,
    readPieces,
    readFloat32: async (name) => {
      if (locate(name).info.dtype !== 'float32') return readFloats(name, (length) => new Float32Array(length));
      return new Float32Array((await readRaw(name)).buffer);
    },
    readFloat64: async (name) => {
      if (locate(name).info.dtype !== 'float64') return readFloats(name, (length) => new Float64Array(length));
      return new Float64Array((await readRaw(name)).buffer);
    },
    readInt: async (name) => viewIntegers(locate(name).info, (await readRaw(name)).buffer),
    close: async () => {
      closing ??= Promise.all(handles.map((handle) => handle.close()));
      await closing;
    },
  };
}

/** Converts a piece's elements into `out`; `piece` starts at a multiple of its element size. */
function widenPiece(
  { buffer, byteOffset }: Uint8Array<ArrayBuffer>,
  dtype: StoredFloatDtype,
  out: Float32Array<ArrayBuffer> | Float64Array<ArrayBuffer>,
): void {
  if (dtype === 'float32') out.set(new Float32Array(buffer, byteOffset, out.length));
  else if (dtype === 'float64') out.set(new Float64Array(buffer, byteOffset, out.length));
  else {
    const widen = dtype === 'bfloat16' ? widenBfloat16 : widenFloat16;
    const bits = new Uint16Array(buffer, byteOffset, out.length);
    if (out instanceof Float32Array) widen(bits, out);
    else out.set(widen(bits));
  }
}

function viewIntegers(info: TensorInfo, buffer: ArrayBuffer): TensorArray {
  switch (info.dtype) {
    case 'bool':
    case 'uint8':
      return new Uint8Array(buffer);
    case 'int8':
      return new Int8Array(buffer);
    case 'uint16':
      return new Uint16Array(buffer);
    case 'int16':
      return new Int16Array(buffer);
    case 'uint32':
      return new Uint32Array(buffer);
    case 'int32':
      return new Int32Array(buffer);
    case 'uint64':
      return new BigUint64Array(buffer);
    case 'int64':
      return new BigInt64Array(buffer);
    default:
      throw wrongDtype(info, 'an integer dtype');
  }
}

const wrongDtype = ({ name, dtype, shape, file }: TensorInfo, expected: string) =>
  new StillhouseError({
    code: 'TENSOR_DTYPE',
    where: file,
    problem: `tensor ${name} is of another type`,
    expected,
    got: formatTensorType(dtype, shape),
  });
