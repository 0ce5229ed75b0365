import assert from 'node:assert/strict';
import { readdir, readFile, symlink } from 'node:fs/promises';
import { join } from 'node:path';
import { isStillhouseError } from '@stillhouse/errors';
import { narrowToBfloat16, narrowToFloat16, widenBfloat16, widenFloat16 } from '@stillhouse/float-formats';
import { makeTemporaryFolder, randomNormals } from '@stillhouse/testing';
import fc from 'fast-check';
import { test } from 'vitest';
import { openSafetensors, type StoredDtype, type TensorToWrite, writeSafetensors } from '../../index.ts';
import { elementBytes } from './stored-dtype.ts';

const DTYPES: readonly StoredDtype[] = [
  'bool',
  'uint8',
  'int8',
  'uint16',
  'int16',
  'uint32',
  'int32',
  'uint64',
  'int64',
  'float8e4m3',
  'float8e5m2',
  'float16',
  'bfloat16',
  'float32',
  'float64',
];

const tensor = fc
  .record({
    name: fc.string({ unit: 'grapheme', minLength: 1, maxLength: 12 }).filter((name) => name !== '__metadata__'),
    dtype: fc.constantFrom(...DTYPES),
    // No dimension (a scalar) and dimensions of 0 (no elements) included.
    shape: fc.array(fc.integer({ min: 0, max: 4 }), { maxLength: 4 }),
  })
  .chain((spec) => {
    const length = spec.shape.reduce((product, size) => product * size, 1) * elementBytes(spec.dtype);
    return fc.uint8Array({ minLength: length, maxLength: length }).map((bytes) => ({ ...spec, bytes }));
  });

test('what is written is read back, byte for byte, whatever the dtypes and shapes', async (t) => {
  const folder = await makeTemporaryFolder(t);
  let run = 0;
  await fc.assert(
    fc.asyncProperty(fc.uniqueArray(tensor, { selector: ({ name }) => name, maxLength: 8 }), async (tensors) => {
      const file = join(folder, `${run++}.safetensors`);
      const bytesOf = new Map(tensors.map(({ name, bytes }) => [name, bytes]));
      await writeSafetensors(file, tensors, async (name) => bytesOf.get(name)!);
      const source = await openSafetensors(file);
      try {
        assert.equal(source.tensors.size, tensors.length);
        const whole = await readFile(file);
        for (const { name, dtype, shape, bytes } of tensors) {
          const info = source.tensors.get(name)!;
          assert.deepEqual([info.dtype, info.shape, info.sizeBytes], [dtype, shape, bytes.length]);
          assert.equal(info.offsetBytes % elementBytes(dtype), 0, 'aligned');
          const stored = whole.subarray(info.offsetBytes, info.offsetBytes + info.sizeBytes);
          assert.deepEqual(new Uint8Array(stored), bytes, 'offsetBytes counts from the start of the file');
          const raw = await source.readRaw(name);
          assert.deepEqual(raw, bytes);
          assert.deepEqual([raw.byteOffset, raw.buffer.byteLength], [0, bytes.length], 'its own buffer');
        }
      } finally {
        await source.close();
      }
    }),
    { numRuns: 150 },
  );
});

test('floats of every dtype are read as float32 and float64, over many pieces too', async (t) => {
  const file = join(await makeTemporaryFolder(t), 'x.safetensors');
  const length = 2_500_001;
  const values = Float32Array.from({ length }, randomNormals(7));
  const dtypes = ['float64', 'float32', 'bfloat16', 'float16'] as const;
  const specs = dtypes.map((dtype) => ({ name: dtype, dtype, shape: [length] }));
  await writeSafetensors(file, specs, async () => values);
  const expected = {
    float64: values,
    float32: values,
    bfloat16: widenBfloat16(narrowToBfloat16(values)),
    float16: widenFloat16(narrowToFloat16(values)),
  };
  const source = await openSafetensors(file);
  for (const dtype of dtypes) {
    const narrow = await source.read(dtype, 'float32');
    const wide = await source.read(dtype, 'float64');
    assert.equal(narrow.length, length);
    assert.equal(wide.length, length);
    assert.ok(Buffer.from(narrow.buffer).equals(Buffer.from(expected[dtype].buffer)), dtype);
    assert.equal(
      wide.findIndex((value, i) => value !== expected[dtype][i]),
      -1,
      dtype,
    );
  }
  await source.close();
});

test('float64 keeps its digits as float64 and is rounded as float32', async (t) => {
  const file = join(await makeTemporaryFolder(t), 'x.safetensors');
  const bytes = new Uint8Array(Float64Array.of(Math.PI, -1e300).buffer);
  await writeSafetensors(file, [{ name: 'w', dtype: 'float64', shape: [2] }], async () => bytes);
  const source = await openSafetensors(file);
  assert.deepEqual(await source.read('w', 'float64'), Float64Array.of(Math.PI, -1e300));
  assert.deepEqual(await source.read('w', 'float32'), Float32Array.of(Math.fround(Math.PI), Number.NEGATIVE_INFINITY));
  await source.close();
});

test('rows that lie across pieces are read whole, from every float dtype, and bad exponents are seen', async (t) => {
  const file = join(await makeTemporaryFolder(t), 'x.safetensors');
  // Rows of 4.5 MB and more: every one lies across the bounds of pieces.
  const width = 1_125_000;
  const dtypes = ['float64', 'float32', 'bfloat16', 'float16'] as const;
  const values = Float32Array.from({ length: 4 * width }, (_, i) => (i % 251) / 4);
  const specs = dtypes.map((dtype) => ({ name: dtype, dtype, shape: [4, width] }));
  const infinite = dtypes.map((dtype) => ({ name: `bad.${dtype}`, dtype, shape: [2] }));
  await writeSafetensors(file, [...specs, ...infinite], async (name) =>
    name.startsWith('bad.') ? Float32Array.of(1, Number.NEGATIVE_INFINITY) : values,
  );
  const source = await openSafetensors(file);
  for (const dtype of dtypes) {
    const rows = await source.readRows(dtype, [1, 3], 'float32');
    assert.ok(Buffer.from(rows.buffer, 0, 4 * width).equals(Buffer.from(values.buffer, 4 * width, 4 * width)), dtype);
    assert.ok(Buffer.from(rows.buffer, 4 * width).equals(Buffer.from(values.buffer, 12 * width, 4 * width)), dtype);
    // Only reading can tell whether float32 has room for a float64.
    assert.equal(await source.mayHoldNonFinite(dtype), dtype === 'float64', dtype);
    assert.ok(await source.mayHoldNonFinite(`bad.${dtype}`), dtype);
    const stored: Buffer[] = [];
    for await (const piece of source.streamStored(dtype)) stored.push(Buffer.from(piece));
    assert.ok(Buffer.concat(stored).equals(await source.readRaw(dtype)), dtype);
  }
  await source.close();
});

test('integers come in the array natural for their dtype', async (t) => {
  const file = join(await makeTemporaryFolder(t), 'x.safetensors');
  const arrays = {
    int64: BigInt64Array.of(-(2n ** 62n), 5n),
    uint64: BigUint64Array.of(2n ** 63n, 5n),
    int32: Int32Array.of(-(2 ** 31), 5),
    uint32: Uint32Array.of(2 ** 31, 5),
    int16: Int16Array.of(-32768, 5),
    uint16: Uint16Array.of(65535, 5),
    int8: Int8Array.of(-128, 5),
    uint8: Uint8Array.of(255, 5),
    bool: Uint8Array.of(1, 0),
  };
  const specs = Object.keys(arrays).map((dtype) => ({ name: dtype, dtype: dtype as StoredDtype, shape: [2] }));
  await writeSafetensors(file, specs, async (name) => new Uint8Array(arrays[name as keyof typeof arrays].buffer));
  const source = await openSafetensors(file);
  for (const [dtype, array] of Object.entries(arrays)) assert.deepEqual(await source.readInt(dtype), array);
  const refused = (error: unknown) => isStillhouseError(error, 'TENSOR_DTYPE') && error.message.includes('tensor int8');
  await assert.rejects(source.read('int8', 'float32'), refused);
  await assert.rejects(source.read('int8', 'float64'), refused);
  await assert.rejects(source.readRaw('x'), (error) => isStillhouseError(error, 'TENSOR_UNKNOWN'));
  await source.close();
  await source.close();
});

test('floats are not read as integers', async (t) => {
  const file = join(await makeTemporaryFolder(t), 'x.safetensors');
  await writeSafetensors(file, [{ name: 'w', dtype: 'bfloat16', shape: [1] }], async () => Float32Array.of(1));
  const source = await openSafetensors(file);
  await assert.rejects(source.readInt('w'), (error) => isStillhouseError(error, 'TENSOR_DTYPE'));
  await source.close();
});

const float = (name: string, shape: readonly number[], dtype: StoredDtype = 'float32') => ({ name, dtype, shape });

const REFUSED: readonly (readonly [
  what: string,
  tensors: readonly TensorToWrite[],
  data: Uint8Array | Float32Array,
  code: string,
  message: RegExp,
])[] = [
  ['a name twice', [float('w', [1]), float('w', [1])], new Float32Array(1), 'TENSOR_SPEC_INVALID', /tensor w/],
  ['the reserved name', [float('__metadata__', [1])], new Float32Array(1), 'TENSOR_SPEC_INVALID', /__metadata__/],
  ['half an element', [float('w', [0.5])], new Float32Array(1), 'TENSOR_SPEC_INVALID', /\[0.5\]/],
  [
    'too few elements',
    [float('w', [2])],
    new Float32Array(1),
    'TENSOR_DATA_MISMATCH',
    /w .*expected 2 elements.*got 1/,
  ],
  ['too many bytes', [float('w', [1])], new Uint8Array(5), 'TENSOR_DATA_MISMATCH', /w .*expected 4 bytes.*got 5/],
  ['floats as integers', [float('w', [1], 'int8')], new Float32Array(1), 'TENSOR_DATA_MISMATCH', /tensor w/],
  [
    'what float16 cannot hold',
    [float('w', [3], 'float16')],
    Float32Array.of(Number.POSITIVE_INFINITY, 65504, -65520),
    'TENSOR_NOT_REPRESENTABLE',
    /w, element 2; got -65520/,
  ],
  [
    'what bfloat16 cannot hold',
    [float('w', [1], 'bfloat16')],
    Float32Array.of(3.4e38),
    'TENSOR_NOT_REPRESENTABLE',
    /bfloat16 is too narrow for tensor w, element 0/,
  ],
];

test('what cannot be written is refused and leaves nothing behind', async (t) => {
  const folder = await makeTemporaryFolder(t);
  for (const [what, tensors, data, code, message] of REFUSED) {
    await assert.rejects(
      writeSafetensors(join(folder, 'x'), tensors, async () => data),
      (error) => {
        assert.ok(isStillhouseError(error, code), `${what}: ${error}`);
        assert.match(error.message, message, what);
        return true;
      },
    );
    assert.deepEqual(await readdir(folder), [], what);
  }
});

test('a failing read leaves nothing behind, and a full disk is DISK_FULL', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const file = join(folder, 'x.safetensors');
  const specs = [float('w', [100_000])];
  await assert.rejects(
    writeSafetensors(file, specs, () => Promise.reject(new Error('gone'))),
    /gone/,
  );
  assert.deepEqual(await readdir(folder), []);
  // The kernel answers ENOSPC to every write to /dev/full.
  if (process.platform !== 'linux') return console.log('no /dev/full here: the full disk was not tried');
  await symlink('/dev/full', `${file}.partial`);
  await assert.rejects(
    writeSafetensors(file, specs, async () => new Float32Array(100_000)),
    (error) => isStillhouseError(error, 'DISK_FULL') && error.report.where === file,
  );
  assert.deepEqual(await readdir(folder), []);
});
