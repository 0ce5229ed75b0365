import { StillhouseError } from '@stillhouse/errors';
import { countElements, formatTensorType } from '@stillhouse/tensor-types';
import type { StoredTensor } from '../../tensor-source.ts';
import { findDuplicateKey } from './duplicate-key.ts';
import {
  codeOfDtype,
  dtypeOfCode,
  elementBytes,
  isStoredFloat,
  knownDtypeCodes,
  type StoredDtype,
} from './stored-dtype.ts';

/** Where one tensor lies. */
export interface TensorInfo extends StoredTensor {
  readonly dtype: StoredDtype;
  /** From the start of the file, header included. */
  readonly offsetBytes: number;
  readonly sizeBytes: number;
}

/** The length field in front of the header. */
export const LENGTH_FIELD_BYTES = 8;
/** The reference implementation's limit. */
export const MAX_HEADER_BYTES = 100_000_000;
/** The one key of a header that is no tensor. */
export const METADATA_KEY = '__metadata__';

const DAMAGED = 'The file is damaged: fetch or write it again';

/**
 * The header's length from the file's first 8 bytes.
 * @throws StillhouseError SAFETENSORS_TRUNCATED, SAFETENSORS_HEADER_LENGTH
 */
export function parseHeaderLength(file: string, field: Uint8Array, fileSizeBytes: number): number {
  if (field.length < LENGTH_FIELD_BYTES) {
    throw new StillhouseError({
      code: 'SAFETENSORS_TRUNCATED',
      where: file,
      problem: 'the file ends inside its length field',
      expected: `at least ${LENGTH_FIELD_BYTES} bytes`,
      got: `${fileSizeBytes}`,
      remedy: DAMAGED,
    });
  }
  const length = new DataView(field.buffer, field.byteOffset).getBigUint64(0, true);
  if (length < 2n || length > BigInt(MAX_HEADER_BYTES)) {
    throw new StillhouseError({
      code: 'SAFETENSORS_HEADER_LENGTH',
      where: file,
      problem: 'the header length is absurd, so this is no safetensors file or a damaged one',
      expected: `2 to ${MAX_HEADER_BYTES} bytes`,
      got: String(length),
    });
  }
  if (LENGTH_FIELD_BYTES + Number(length) > fileSizeBytes) {
    throw new StillhouseError({
      code: 'SAFETENSORS_TRUNCATED',
      where: file,
      problem: 'the file ends inside its header',
      expected: `at least ${LENGTH_FIELD_BYTES + Number(length)} bytes`,
      got: `${fileSizeBytes}`,
      remedy: DAMAGED,
    });
  }
  return Number(length);
}

/**
 * Parses and checks a header as strictly as the reference implementation: the tensors fill the rest of the file
 * without gap or overlap. Format: https://huggingface.co/docs/safetensors/index#format
 * @param header the bytes between the length field and the data
 * @returns tensors in the order of their bytes
 * @throws StillhouseError SAFETENSORS_HEADER_INVALID, SAFETENSORS_DUPLICATE_NAME, SAFETENSORS_DTYPE_UNKNOWN,
 *   SAFETENSORS_OFFSETS_INVALID, SAFETENSORS_SIZE_MISMATCH, SAFETENSORS_TRUNCATED, SAFETENSORS_OVERLAP, SAFETENSORS_GAP
 */
export function parseHeader(file: string, header: Uint8Array, fileSizeBytes: number): readonly TensorInfo[] {
  const dataStart = LENGTH_FIELD_BYTES + header.length;
  const tensors = Object.entries(parseJson(file, header))
    .filter(([name]) => name !== METADATA_KEY)
    .map(([name, entry]) => parseEntry(file, name, entry, dataStart))
    .sort((a, b) => a.offsetBytes - b.offsetBytes || a.sizeBytes - b.sizeBytes);
  let end = dataStart;
  let before = 'the header';
  for (const { name, offsetBytes, sizeBytes } of tensors) {
    if (offsetBytes !== end) {
      throw new StillhouseError({
        code: offsetBytes < end ? 'SAFETENSORS_OVERLAP' : 'SAFETENSORS_GAP',
        where: file,
        problem: `tensor ${name} ${offsetBytes < end ? 'overlaps' : 'leaves a gap after'} ${before}`,
        expected: `its bytes at ${end}`,
        got: `${offsetBytes}`,
        remedy: DAMAGED,
      });
    }
    end += sizeBytes;
    before = `tensor ${name}`;
    if (end > fileSizeBytes) {
      throw new StillhouseError({
        code: 'SAFETENSORS_TRUNCATED',
        where: file,
        problem: `the file ends before the last byte of tensor ${name}`,
        expected: `at least ${end} bytes`,
        got: `${fileSizeBytes}`,
        remedy: DAMAGED,
      });
    }
  }
  if (end !== fileSizeBytes) {
    throw new StillhouseError({
      code: 'SAFETENSORS_GAP',
      where: file,
      problem: `bytes that belong to no tensor follow ${before}`,
      expected: `${end} bytes`,
      got: `${fileSizeBytes}`,
      remedy: DAMAGED,
    });
  }
  return tensors;
}

function invalid(file: string, problem: string, expected?: string, got?: string): StillhouseError {
  return new StillhouseError({
    code: 'SAFETENSORS_HEADER_INVALID',
    where: file,
    problem,
    ...(expected === undefined ? {} : { expected }),
    ...(got === undefined ? {} : { got }),
    remedy: DAMAGED,
  });
}

function parseJson(file: string, header: Uint8Array): object {
  let text: string;
  let parsed: unknown;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(header);
    parsed = JSON.parse(text);
  } catch (cause) {
    throw new StillhouseError({
      code: 'SAFETENSORS_HEADER_INVALID',
      where: file,
      problem: `the header is not JSON (${(cause as Error).message})`,
      remedy: DAMAGED,
      cause,
    });
  }
  if (!isObject(parsed)) throw invalid(file, 'the header is no JSON object');
  const twice = findDuplicateKey(text);
  if (twice !== undefined) {
    throw new StillhouseError({
      code: 'SAFETENSORS_DUPLICATE_NAME',
      where: file,
      problem: `the header holds ${JSON.stringify(twice)} twice`,
      remedy: DAMAGED,
    });
  }
  return parsed;
}

const isObject = (value: unknown): value is object =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;

const areCounts = (value: unknown): value is number[] => Array.isArray(value) && value.every(isCount);

function parseEntry(file: string, name: string, entry: unknown, dataStart: number): TensorInfo {
  const { dtype: code, shape, data_offsets: offsets } = (isObject(entry) ? entry : {}) as Record<string, unknown>;
  if (typeof code !== 'string' || !areCounts(shape)) {
    throw invalid(file, `tensor ${name} has a malformed entry`, '{dtype, shape, data_offsets}', JSON.stringify(entry));
  }
  const dtype = dtypeOfCode(code);
  if (dtype === undefined) {
    throw new StillhouseError({
      code: 'SAFETENSORS_DTYPE_UNKNOWN',
      where: file,
      problem: `tensor ${name} has a dtype that cannot be read`,
      expected: `one of ${knownDtypeCodes.join(', ')}`,
      got: code,
    });
  }
  const [begin, end] = areCounts(offsets) && offsets.length === 2 ? (offsets as [number, number]) : [1, 0];
  if (begin > end) {
    throw new StillhouseError({
      code: 'SAFETENSORS_OFFSETS_INVALID',
      where: file,
      problem: `tensor ${name} has impossible offsets`,
      expected: '[begin, end] with 0 <= begin <= end',
      got: JSON.stringify(offsets),
      remedy: DAMAGED,
    });
  }
  const sizeBytes = countElements(shape) * elementBytes(dtype);
  if (end - begin !== sizeBytes) {
    throw new StillhouseError({
      code: 'SAFETENSORS_SIZE_MISMATCH',
      where: file,
      problem: `tensor ${name} is not as large as its type says`,
      expected: `${sizeBytes} bytes for ${formatTensorType(codeOfDtype(dtype), shape)}`,
      got: `${end - begin}`,
      remedy: DAMAGED,
    });
  }
  return { name, dtype, isFloat: isStoredFloat(dtype), shape, file, offsetBytes: dataStart + begin, sizeBytes };
}
