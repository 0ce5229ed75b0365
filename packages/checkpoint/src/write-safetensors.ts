import { type FileDigest, stageFile } from '@stillhouse/durable-files';
import { narrowToBfloat16, narrowToFloat16 } from '@stillhouse/float-formats';
import { codeOfDtype, countElements, elementBytes, type StoredDtype } from './stored-dtype.ts';

export interface TensorToWrite {
  readonly name: string;
  readonly dtype: StoredDtype;
  readonly shape: readonly number[];
}

/** The reference writer aligns data to 8 bytes by spaces after the header. */
const ALIGNMENT = 8;

/**
 * Writes a safetensors file tensor by tensor: whole or absent, and one tensor in memory at a time.
 * @param read gives the stored bytes of a tensor, or its elements as float32 when it is stored as a float type
 * @throws StillhouseError DISK_FULL, NOT_WRITABLE
 */
export async function writeSafetensors(
  path: string,
  tensors: readonly TensorToWrite[],
  read: (name: string) => Promise<Uint8Array | Float32Array>,
  metadata: Readonly<Record<string, string>> = { format: 'pt' },
): Promise<FileDigest> {
  const header: Record<string, unknown> = { __metadata__: metadata };
  let end = 0;
  for (const { name, dtype, shape } of tensors) {
    const begin = end;
    end += countElements(shape) * elementBytes(dtype);
    header[name] = { dtype: codeOfDtype(dtype), shape, data_offsets: [begin, end] };
  }
  const json = Buffer.from(JSON.stringify(header), 'utf8');
  const padded = Buffer.alloc(Math.ceil(json.length / ALIGNMENT) * ALIGNMENT, ' ');
  json.copy(padded);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(padded.length));
  const staged = await stageFile(path);
  try {
    await staged.write(length);
    await staged.write(padded);
    for (const tensor of tensors) await staged.write(encode(tensor, await read(tensor.name)));
    return await staged.commit();
  } finally {
    await staged.abort();
  }
}

function encode({ name, dtype, shape }: TensorToWrite, data: Uint8Array | Float32Array): Uint8Array {
  const bytesOf = (array: Uint16Array | Float32Array | Float64Array | Uint8Array) =>
    new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  const bytes = data instanceof Float32Array ? bytesOf(narrow(dtype, data)) : data;
  const needed = countElements(shape) * elementBytes(dtype);
  if (bytes.length !== needed)
    throw new Error(`tensor ${name}: ${bytes.length} bytes for ${dtype}[${shape.join(', ')}], which has ${needed}`);
  return bytes;
}

function narrow(dtype: StoredDtype, values: Float32Array): Uint16Array | Float32Array | Float64Array {
  switch (dtype) {
    case 'float32':
      return values;
    case 'bfloat16':
      return narrowToBfloat16(values);
    case 'float16':
      return narrowToFloat16(values);
    case 'float64':
      return Float64Array.from(values);
    default:
      throw new Error(`float32 numbers cannot be stored as ${dtype}`);
  }
}
