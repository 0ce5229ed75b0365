import { type FileHandle, open, realpath } from 'node:fs/promises';
import { StillhouseError } from '@stillhouse/errors';
import { countElements, formatTensorType } from '@stillhouse/tensor-types';
import { allocateFloats, type FloatArrays, type TensorSource } from '../../tensor-source.ts';
import { LENGTH_FIELD_BYTES, parseHeader, parseHeaderLength, type TensorInfo } from './safetensors-header.ts';
import {
  elementBytes,
  isStoredFloat,
  mayHoldNonFinite,
  type StoredFloatDtype,
  type TensorArray,
  viewIntegers,
  widenFloats,
} from './stored-dtype.ts';

/**
 * The tensors of one safetensors file or of a sharded set. Reads also throw StillhouseError SAFETENSORS_TRUNCATED (the
 * file shrank since it was opened).
 */
export interface SafetensorsSource extends TensorSource {
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  /** The stored bytes in a fresh ArrayBuffer that holds nothing else. */
  readRaw(name: string): Promise<Uint8Array<ArrayBuffer>>;
  /** Integers and booleans (0 or 1) as stored. */
  readInt(name: string): Promise<TensorArray>;
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
export async function openSafetensors(file: string): Promise<SafetensorsSource> {
  const { tensors, handle } = await openTensorFile(file);
  return createSafetensorsSource(
    file,
    tensors.map((info) => ({ info, handle })),
    [handle],
  );
}

/** A tensor and the open file that it is read from. */
export interface LocatedTensor {
  readonly info: TensorInfo;
  readonly handle: FileHandle;
}

/** Joins tensors of open files; `where` names the whole in messages. The source closes `handles`. */
export function createSafetensorsSource(
  where: string,
  located: readonly LocatedTensor[],
  handles: readonly FileHandle[],
): SafetensorsSource {
  const byName = new Map(located.map((tensor) => [tensor.info.name, tensor]));
  const locate = (name: string) => {
    const tensor = byName.get(name);
    if (tensor !== undefined) return tensor;
    throw new StillhouseError({ code: 'TENSOR_UNKNOWN', where, problem: `there is no tensor ${name}` });
  };
  let closing: Promise<unknown> | undefined;
  return {
    tensors: new Map(located.map(({ info }) => [info.name, info])),
    read: async (name, float) => readFloats(locate(name), float),
    readRows: async (name, rows, float) => readRows(locate(name), rows, float),
    mayHoldNonFinite: async (name) => {
      const tensor = locate(name);
      for await (const piece of readPieces(tensor)) if (mayHoldNonFinite(piece, floatDtype(tensor.info))) return true;
      return false;
    },
    streamStored: (name) => readPieces(locate(name)),
    readRaw: async (name) => readRaw(locate(name)),
    readInt: async (name) => {
      const { info, ...rest } = locate(name);
      return (
        viewIntegers(info.dtype, (await readRaw({ info, ...rest })).buffer) ?? refuseDtype(info, 'an integer dtype')
      );
    },
    close: async () => {
      closing ??= Promise.all(handles.map((handle) => handle.close()));
      await closing;
    },
  };
}

async function readRaw({ info, handle }: LocatedTensor): Promise<Uint8Array<ArrayBuffer>> {
  const bytes = new Uint8Array(info.sizeBytes);
  await readFully(handle, info.file, bytes, info.offsetBytes);
  return bytes;
}

/** The stored bytes in order, in pieces that share their memory. */
async function* readPieces({ info, handle }: LocatedTensor): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  const scratch = new Uint8Array(Math.min(PIECE_BYTES, info.sizeBytes));
  for (let done = 0; done < info.sizeBytes; done += scratch.length) {
    const piece = scratch.subarray(0, Math.min(scratch.length, info.sizeBytes - done));
    await readFully(handle, info.file, piece, info.offsetBytes + done);
    yield piece;
  }
}

async function readFloats<Float extends keyof FloatArrays>(
  tensor: LocatedTensor,
  float: Float,
): Promise<FloatArrays[Float]> {
  const { info } = tensor;
  const dtype = floatDtype(info);
  const out = allocateFloats(float, countElements(info.shape));
  if (dtype === float) {
    await readFully(tensor.handle, info.file, new Uint8Array(out.buffer), info.offsetBytes);
    return out;
  }
  let done = 0;
  for await (const piece of readPieces(tensor)) {
    const length = piece.length / elementBytes(dtype);
    widenFloats(piece, dtype, out.subarray(done, done + length));
    done += length;
  }
  return out;
}

/** Copies the wanted rows out of the pieces as the tensor streams by once. */
async function readRows<Float extends keyof FloatArrays>(
  tensor: LocatedTensor,
  rows: readonly number[],
  float: Float,
): Promise<FloatArrays[Float]> {
  const { sizeBytes, shape } = tensor.info;
  const dtype = floatDtype(tensor.info);
  if (rows.length === 0) return allocateFloats(float, 0);
  const rowBytes = sizeBytes / shape[0]!;
  const stored = new Uint8Array(rows.length * rowBytes);
  let start = 0;
  let next = 0;
  for await (const piece of readPieces(tensor)) {
    const end = start + piece.length;
    for (; next < rows.length; next++) {
      const rowStart = rows[next]! * rowBytes;
      if (rowStart >= end) break;
      const from = Math.max(rowStart, start);
      const to = Math.min(rowStart + rowBytes, end);
      stored.set(piece.subarray(from - start, to - start), next * rowBytes + from - rowStart);
      if (to < rowStart + rowBytes) break; // The rest is in the next piece.
    }
    start = end;
  }
  const out = allocateFloats(float, stored.length / elementBytes(dtype));
  widenFloats(stored, dtype, out);
  return out;
}

/** @throws StillhouseError TENSOR_DTYPE */
function floatDtype(info: TensorInfo): StoredFloatDtype {
  return isStoredFloat(info.dtype) ? info.dtype : refuseDtype(info, 'a float dtype');
}

function refuseDtype({ name, dtype, shape, file }: TensorInfo, expected: string): never {
  throw new StillhouseError({
    code: 'TENSOR_DTYPE',
    where: file,
    problem: `tensor ${name} is of another type`,
    expected,
    got: formatTensorType(dtype, shape),
  });
}
