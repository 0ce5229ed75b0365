import { type FileDigest, type StagedFile, stageFile } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import { narrowToBfloat16, narrowToFloat16 } from '@stillhouse/float-formats';
import { countElements, formatTensorType } from '@stillhouse/tensor-types';
import { LENGTH_FIELD_BYTES, METADATA_KEY } from './safetensors-header.ts';
import { codeOfDtype, elementBytes, type StoredDtype } from './stored-dtype.ts';

export interface TensorToWrite {
  readonly name: string;
  readonly dtype: StoredDtype;
  readonly shape: readonly number[];
}

/** The reference writer aligns data to 8 bytes by spaces after the header. */
const ALIGNMENT_BYTES = 8;
/** Bounds the memory that conversion takes. */
const PIECE_ELEMENTS = 1 << 20;

/**
 * Writes a safetensors file tensor by tensor: whole or absent, and one tensor in memory at a time. Tensors keep their
 * order, but for wider elements standing before narrower ones so that every tensor is aligned.
 * @param read gives the stored bytes of a tensor, or its elements as float32 when it is stored as a float dtype
 * @param metadata free text; transformers wants `format`
 * @throws StillhouseError TENSOR_SPEC_INVALID, TENSOR_DATA_MISMATCH, TENSOR_NOT_REPRESENTABLE, DISK_FULL, NOT_WRITABLE
 */
export async function writeSafetensors(
  path: string,
  tensors: Iterable<TensorToWrite>,
  read: (name: string) => Promise<Uint8Array | Float32Array>,
  metadata: Readonly<Record<string, string>> = { format: 'pt' },
): Promise<FileDigest> {
  const ordered = [...tensors].sort((a, b) => elementBytes(b.dtype) - elementBytes(a.dtype));
  const header = encodeHeader(path, ordered, metadata);
  const staged = await stageFile(path);
  try {
    await staged.write(header);
    for (const tensor of ordered) await writeTensor(staged, tensor, await read(tensor.name));
    return await staged.commit();
  } finally {
    await staged.abort();
  }
}

function encodeHeader(
  path: string,
  tensors: readonly TensorToWrite[],
  metadata: Readonly<Record<string, string>>,
): Uint8Array {
  const entries = new Map<string, unknown>([[METADATA_KEY, metadata]]);
  let end = 0;
  for (const { name, dtype, shape } of tensors) {
    if (entries.has(name) || !shape.every((size) => Number.isSafeInteger(size) && size >= 0)) {
      throw new StillhouseError({
        code: 'TENSOR_SPEC_INVALID',
        where: path,
        problem: `tensor ${name} cannot be written`,
        expected: `a name of its own other than ${METADATA_KEY} and a shape of whole numbers`,
        got: formatTensorType(dtype, shape),
      });
    }
    const begin = end;
    end += countElements(shape) * elementBytes(dtype);
    entries.set(name, { dtype: codeOfDtype(dtype), shape, data_offsets: [begin, end] });
  }
  const json = Buffer.from(JSON.stringify(Object.fromEntries(entries)), 'utf8');
  const paddedBytes = Math.ceil(json.length / ALIGNMENT_BYTES) * ALIGNMENT_BYTES;
  const header = Buffer.alloc(LENGTH_FIELD_BYTES + paddedBytes, ' ');
  header.writeBigUInt64LE(BigInt(paddedBytes));
  json.copy(header, LENGTH_FIELD_BYTES);
  return header;
}

async function writeTensor(staged: StagedFile, tensor: TensorToWrite, data: Uint8Array | Float32Array): Promise<void> {
  const { name, dtype, shape } = tensor;
  const elements = countElements(shape);
  const expected = data instanceof Float32Array ? elements : elements * elementBytes(dtype);
  if (data.length !== expected) {
    const unit = data instanceof Float32Array ? 'elements' : 'bytes';
    throw new StillhouseError({
      code: 'TENSOR_DATA_MISMATCH',
      where: staged.path,
      problem: `the data given for tensor ${name} does not fill it`,
      expected: `${expected} ${unit} for ${formatTensorType(dtype, shape)}`,
      got: String(data.length),
    });
  }
  if (!(data instanceof Float32Array)) return staged.write(data);
  for (let done = 0; done < elements; done += PIECE_ELEMENTS) {
    const piece = narrow(staged.path, tensor, data.subarray(done, done + PIECE_ELEMENTS), done);
    await staged.write(new Uint8Array(piece.buffer, piece.byteOffset, piece.byteLength));
  }
}

/** `values` as `tensor` stores them; they are its elements from `first` on. */
function narrow(
  path: string,
  { name, dtype, shape }: TensorToWrite,
  values: Float32Array,
  first: number,
): Uint16Array | Float32Array | Float64Array {
  if (dtype === 'float32') return values;
  if (dtype === 'float64') return Float64Array.from(values);
  if (dtype !== 'bfloat16' && dtype !== 'float16') {
    throw new StillhouseError({
      code: 'TENSOR_DATA_MISMATCH',
      where: path,
      problem: `float32 numbers were given for tensor ${name}`,
      expected: `the bytes of ${formatTensorType(dtype, shape)}`,
    });
  }
  const bits = dtype === 'bfloat16' ? narrowToBfloat16(values) : narrowToFloat16(values);
  const infinity = dtype === 'bfloat16' ? 0x7f80 : 0x7c00;
  const overflow = bits.findIndex((word, i) => (word & 0x7fff) === infinity && Number.isFinite(values[i]));
  if (overflow === -1) return bits;
  throw new StillhouseError({
    code: 'TENSOR_NOT_REPRESENTABLE',
    where: path,
    problem: `${dtype} is too narrow for tensor ${name}, element ${first + overflow}`,
    got: String(values[overflow]),
    remedy: 'Write float32 or bfloat16',
  });
}
