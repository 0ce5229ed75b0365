import assert from 'node:assert/strict';
import { mkdir, symlink, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { isStillhouseError } from '@stillhouse/errors';
import { makeTemporaryFolder } from '@stillhouse/testing';
import { test } from 'vitest';
import { openSafetensors, writeSafetensors } from '../../index.ts';

/** A file of any header text and data; `length` overrules the length field. */
function encodeFile(header: unknown, data = 0, length?: bigint): Buffer {
  const text = Buffer.from(typeof header === 'string' ? header : JSON.stringify(header));
  const field = Buffer.alloc(8);
  field.writeBigUInt64LE(length ?? BigInt(text.length));
  return Buffer.concat([field, text, Buffer.alloc(data)]);
}

const entry = (begin: number, end: number, shape = [(end - begin) / 4], dtype = 'F32') => ({
  dtype,
  shape,
  data_offsets: [begin, end],
});

const DAMAGED: readonly (readonly [what: string, file: Buffer, code: string, message: RegExp])[] = [
  ['an empty file', Buffer.alloc(0), 'SAFETENSORS_TRUNCATED', /inside its length field; expected at least 8 bytes/],
  ['a file of 7 bytes', Buffer.alloc(7), 'SAFETENSORS_TRUNCATED', /got 7/],
  ['a header length of 0', Buffer.alloc(16), 'SAFETENSORS_HEADER_LENGTH', /absurd.*got 0/],
  ['an absurd header length', encodeFile({}, 0, 2n ** 63n), 'SAFETENSORS_HEADER_LENGTH', /got 9223372036854775808/],
  ['another format', Buffer.from('GGUF\x03\0\0\0\xff\0\0\0'), 'SAFETENSORS_HEADER_LENGTH', /no safetensors file/],
  ['a file that ends in its header', encodeFile({}, 0, 999n), 'SAFETENSORS_TRUNCATED', /at least 1007 bytes, got 10/],
  ['a header that is not JSON', encodeFile('{"a":'), 'SAFETENSORS_HEADER_INVALID', /not JSON/],
  ['a header that is not UTF-8', encodeFile('{"a":1}', 0).fill(0xff, 10, 11), 'SAFETENSORS_HEADER_INVALID', /not JSON/],
  ['a header that is an array', encodeFile('[1]'), 'SAFETENSORS_HEADER_INVALID', /no JSON object/],
  ['an entry without a shape', encodeFile({ w: { dtype: 'F32' } }), 'SAFETENSORS_HEADER_INVALID', /tensor w /],
  [
    'an entry with a negative size',
    encodeFile({ w: entry(0, 4, [-1]) }, 4),
    'SAFETENSORS_HEADER_INVALID',
    /tensor w has a malformed entry.*-1/,
  ],
  ['an unknown dtype', encodeFile({ w: entry(0, 4, [1], 'F4') }, 4), 'SAFETENSORS_DTYPE_UNKNOWN', /tensor w .*got F4/],
  ['offsets backwards', encodeFile({ w: entry(4, 0, [1]) }, 4), 'SAFETENSORS_OFFSETS_INVALID', /tensor w .*\[4,0\]/],
  [
    'offsets beyond whole numbers',
    encodeFile('{"w":{"dtype":"U8","shape":[4],"data_offsets":[-4,0]}}'),
    'SAFETENSORS_OFFSETS_INVALID',
    /tensor w/,
  ],
  [
    'a size that is not shape x dtype',
    encodeFile({ w: entry(0, 8, [3]) }, 8),
    'SAFETENSORS_SIZE_MISMATCH',
    /tensor w .*expected 12 bytes for F32 \[3\], got 8/,
  ],
  [
    'a shape whose product overflows',
    encodeFile({ w: entry(0, 8, [2 ** 53 - 1, 2 ** 53 - 1]) }, 8),
    'SAFETENSORS_SIZE_MISMATCH',
    /tensor w/,
  ],
  ['data cut short', encodeFile({ v: entry(0, 8), w: entry(8, 16) }, 12), 'SAFETENSORS_TRUNCATED', /tensor w/],
  [
    'tensors that overlap',
    encodeFile({ v: entry(0, 8), w: entry(4, 12) }, 12),
    'SAFETENSORS_OVERLAP',
    /w overlaps.* v/,
  ],
  ['a gap', encodeFile({ v: entry(0, 4), w: entry(8, 12) }, 12), 'SAFETENSORS_GAP', /w leaves a gap after tensor v/],
  ['bytes after the last tensor', encodeFile({ w: entry(0, 4) }, 5), 'SAFETENSORS_GAP', /follow tensor w/],
  [
    'a name twice',
    encodeFile(`{"w":${JSON.stringify(entry(0, 4))},"\\u0077" :${JSON.stringify(entry(0, 4))}}`, 4),
    'SAFETENSORS_DUPLICATE_NAME',
    /"w" twice/,
  ],
];

test('a damaged file is refused by a code of its own that names file, tensor and expectation', async (t) => {
  const folder = await makeTemporaryFolder(t);
  for (const [what, bytes, code, message] of DAMAGED) {
    const file = join(folder, 'x.safetensors');
    await writeFile(file, bytes);
    await assert.rejects(
      openSafetensors(file),
      (error) => {
        assert.ok(isStillhouseError(error), `${what}: ${error}`);
        assert.equal(error.code, code, what);
        assert.equal(error.report.where, file, what);
        assert.match(error.message, message, what);
        return true;
      },
      what,
    );
  }
});

test('a header that looks odd but is valid is read', async (t) => {
  const file = join(await makeTemporaryFolder(t), 'x.safetensors');
  const header = { __metadata__: { w: '"}{' }, b: entry(4, 8), 'a "\\': entry(0, 4), nothing: entry(4, 4, [0, 7]) };
  await writeFile(file, encodeFile(`${JSON.stringify(header)}   `, 8));
  const source = await openSafetensors(file);
  assert.deepEqual([...source.tensors.keys()], ['a "\\', 'nothing', 'b']);
  await source.close();
});

test('what is no file is CHECKPOINT_FILE_UNREADABLE', async (t) => {
  const folder = await makeTemporaryFolder(t);
  await mkdir(join(folder, 'folder'));
  await symlink('nowhere', join(folder, 'dangling'));
  for (const name of ['absent', 'folder', 'dangling']) {
    await assert.rejects(openSafetensors(join(folder, name)), (error) => {
      return isStillhouseError(error, 'CHECKPOINT_FILE_UNREADABLE') && error.report.where === join(folder, name);
    });
  }
});

test('a file that shrinks while it is open is SAFETENSORS_TRUNCATED, not zeros', async (t) => {
  const file = join(await makeTemporaryFolder(t), 'x.safetensors');
  await writeSafetensors(file, [{ name: 'w', dtype: 'float32', shape: [1000] }], async () => new Float32Array(1000));
  const source = await openSafetensors(file);
  await truncate(file, 2000);
  for (const read of [
    () => source.readRaw('w'),
    () => source.read('w', 'float32'),
    () => source.read('w', 'float64'),
    () => source.readRows('w', [999], 'float32'),
  ]) {
    await assert.rejects(read, (error) => isStillhouseError(error, 'SAFETENSORS_TRUNCATED'));
  }
  await source.close();
});
