import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, readdir, readFile, rm, symlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, test } from 'vitest';
import { SLOT_BYTES } from './growing-file.ts';
import { stageFile } from './index.ts';

const root = await mkdtemp(join(tmpdir(), 'growing-file-'));
afterAll(() => rm(root, { recursive: true, force: true }));

const folder = () => mkdtemp(join(root, 'test-'));

/** Bytes in which a block that went astray is noticed. */
function someBytes(sizeBytes: number): Buffer {
  const bytes = Buffer.alloc(sizeBytes);
  for (let i = 0; i < sizeBytes; i++) bytes[i] = (i ^ (i >>> 8) ^ (i >>> 16)) + (i >>> 12);
  return bytes;
}

/** The memory that was handed over is overwritten at once, as `write` allows. */
async function writeInPieces(path: string, bytes: Uint8Array, pieceBytes: number) {
  const staged = await stageFile(path);
  try {
    for (let at = 0; at < bytes.length; at += pieceBytes) {
      const piece = new Uint8Array(bytes.subarray(at, at + pieceBytes));
      await staged.write(piece);
      piece.fill(255);
    }
    return await staged.commit();
  } finally {
    await staged.abort();
  }
}

test('files of every length around what is gathered are the bytes that were written, with their sha256', async () => {
  const dir = await folder();
  const lengths = [0, 1, ...[1, 2, 4, 5, 9].flatMap((slots) => [-1, 0, 1].map((more) => slots * SLOT_BYTES + more))];
  const all = someBytes(Math.max(...lengths));
  for (const sizeBytes of lengths) {
    const bytes = all.subarray(0, sizeBytes);
    const digest = await writeInPieces(join(dir, 'x'), bytes, 700_001);
    const sha256 = createHash('sha256').update(bytes).digest('hex');
    assert.deepEqual(digest, { sha256, sizeBytes }, `${sizeBytes} bytes`);
    assert.ok(bytes.equals(await readFile(join(dir, 'x'))), `${sizeBytes} bytes`);
  }
  assert.deepEqual(await readdir(dir), ['x']);
});

test('files that are written at once keep their bytes apart', async () => {
  const dir = await folder();
  const all = someBytes(7 * SLOT_BYTES);
  const contents = Array.from({ length: 5 }, (_, i) => all.subarray(i * 1000, all.length - i * 3001));
  await Promise.all(contents.map((bytes, i) => writeInPieces(join(dir, `${i}`), bytes, 100_003 * (i + 1))));
  for (const [i, bytes] of contents.entries()) assert.ok(bytes.equals(await readFile(join(dir, `${i}`))), `file ${i}`);
});

test('a disk that becomes full is DISK_FULL, nothing stays, and with room it works again', async (t) => {
  const dir = join(await folder(), 'tmpfs');
  await mkdir(dir);
  const { status } = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=13001k', 'tmpfs', dir]);
  if (status !== 0) return t.skip('mounting needs root on Linux');
  try {
    const path = join(dir, 'x');
    await assert.rejects(writeInPieces(path, Buffer.alloc(24 << 20, 1), 3 << 20), {
      code: 'DISK_FULL',
      message: /x: the disk is full/,
    });
    assert.deepEqual(await readdir(dir), []);
    const bytes = someBytes(5 << 20);
    await writeInPieces(path, bytes, 1 << 20);
    assert.ok(bytes.equals(await readFile(path)), 'other bytes');
  } finally {
    assert.equal(spawnSync('umount', [dir]).status, 0, 'unmounted');
  }
});

test('a device that is full is DISK_FULL', async (t) => {
  if (process.platform !== 'linux') return t.skip('/dev/full is a Linux thing');
  const dir = await folder();
  await symlink('/dev/full', join(dir, 'x.partial'));
  await assert.rejects(writeInPieces(join(dir, 'x'), Buffer.alloc(12 << 20), 1 << 20), { code: 'DISK_FULL' });
  assert.deepEqual(await readdir(dir), []);
});
