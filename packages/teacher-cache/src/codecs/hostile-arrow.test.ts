import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'vitest';
import { shardSchema } from '../format/arrow-schemas.ts';
import { digestManifest } from '../format/manifest.ts';
import { openCache } from '../index.ts';
import { buildRandomCache } from '../testing/random-cache.ts';
import { inFolder } from '../testing/scratch-folder.ts';
import { openArrowFile } from './arrow-file-reader.ts';
import { decodeFooter } from './arrow-metadata.ts';

// biome-ignore lint/suspicious/noExplicitAny: manifests are edited here in ways that types forbid
type Editable = any;

const ROWS = 11;

/** Puts other bytes into a file and makes the manifest agree, as one who wants to be believed would. */
async function plant(folder: string, path: string, bytes: Buffer, edit: (manifest: Editable) => void): Promise<void> {
  await writeFile(join(folder, path), bytes);
  const at = join(folder, 'manifest.json');
  const manifest = JSON.parse(await readFile(at, 'utf8')) as Editable;
  for (const file of Object.values(manifest.shards[0].files) as Editable[]) {
    if (file.path !== path) continue;
    file.sizeBytes = bytes.length;
    file.sha256 = createHash('sha256').update(bytes).digest('hex');
  }
  edit(manifest);
  manifest.digest = digestManifest(manifest);
  await writeFile(at, JSON.stringify(manifest));
}

async function readAll(folder: string): Promise<void> {
  const cache = await openCache(folder);
  try {
    for await (const _ of cache.rows());
  } finally {
    await cache.close();
  }
}

test('columns that claim a thousand million entries in a few bytes are refused, at once and in little memory', () =>
  inFolder(async (folder) => {
    const shape = { seed: 5, rows: ROWS, rowsPerShard: ROWS, maxTokens: 9, vocabSize: 20, hiddenSize: 8, k: 3 };
    await buildRandomCache(folder, shape);
    const manifest = await readFile(join(folder, 'manifest.json'));
    const huge = 1_000_000_000n;
    let refused = 0;
    for (const group of ['rows', 'topk', 'hidden-final']) {
      const path = `shards/00000.${group}.arrow`;
      const sound = await readFile(join(folder, path));
      // Wherever a count of rows may stand: the length of the batch and of its columns.
      const places: number[] = [];
      for (let at = 0; at + 8 <= sound.length; at += 8) if (sound.readBigInt64LE(at) === BigInt(ROWS)) places.push(at);
      assert.ok(places.length >= 2, `${group}: ${places.length} places`);
      for (const [some, claim] of [
        ...places.map((place) => [[place], false] as const),
        [places, false] as const,
        [places, true] as const,
      ]) {
        const bytes = Buffer.from(sound);
        for (const place of some) bytes.writeBigInt64LE(huge, place);
        await plant(folder, path, bytes, (m) => {
          if (!claim) return;
          m.rows = { planned: Number(huge), stored: Number(huge) };
          m.description.rowsPerShard = Number(huge);
          m.shards[0].rowCount = Number(huge);
          for (const entry of m.provenance ?? []) entry.rowCount = Number(huge);
        });
        const before = process.memoryUsage().rss;
        const beforeCpu = process.cpuUsage();
        await readAll(folder).then(
          () => {},
          (error: { code: string }) => {
            refused++;
            assert.match(error.code, /^CACHE_(FILE_UNREADABLE|MANIFEST_INVALID)$/);
          },
        );
        // Processor time, which a busy machine does not add to.
        assert.ok(process.cpuUsage(beforeCpu).user < 5_000_000, 'a lie costs seconds');
        assert.ok(process.memoryUsage().rss - before < 200 << 20);
      }
      await writeFile(join(folder, path), sound);
      await writeFile(join(folder, 'manifest.json'), manifest);
      await readAll(folder);
    }
    assert.ok(refused >= 9, `${refused} refused`);
  }));

test('lists in the metadata that claim more entries than there are bytes are refused, in little memory', () =>
  inFolder(async (folder) => {
    const shape = { seed: 5, rows: 3, rowsPerShard: 3, maxTokens: 9, vocabSize: 20, hiddenSize: 8, k: 3 };
    const description = await buildRandomCache(folder, shape);
    const path = join(folder, 'shards/00000.topk.arrow');
    const sound = await readFile(path);
    const read = async () => {
      const file = await openArrowFile(path, shardSchema(description, 'topk'));
      await file.readBatch(0).finally(file.close);
    };
    let refused = 0;
    for (let at = 0; at + 4 <= sound.length; at += 4) {
      const count = sound.readInt32LE(at);
      // Wherever the length of a list may stand, and the footer's.
      if (count < 1 || count > 2000) continue;
      for (const claim of [-1, 300_000, 0x0fffffff]) {
        const bytes = Buffer.from(sound);
        bytes.writeInt32LE(claim, at);
        await writeFile(path, bytes);
        const before = process.memoryUsage().rss;
        await read().catch((error: { code: string; message: string }) => {
          assert.equal(error.code, 'CACHE_FILE_UNREADABLE', error.message);
          if (/holds fewer|longer than the file/.test(error.message)) refused++;
        });
        assert.ok(process.memoryUsage().rss - before < 50 << 20, `${claim} at byte ${at}`);
      }
    }
    assert.ok(refused >= 12, `${refused} refused`);
    await writeFile(path, sound);
    await read();
  }));

test('a footer that leads out of the file or back into itself is refused', () =>
  inFolder(async (folder) => {
    const shape = { seed: 5, rows: 3, rowsPerShard: 3, maxTokens: 9, vocabSize: 20, hiddenSize: 8, k: 3 };
    await buildRandomCache(folder, shape);
    const file = await readFile(join(folder, 'shards/00000.topk.arrow'));
    const footer = file.subarray(-10 - file.readInt32LE(file.length - 10), -10);
    assert.equal(decodeFooter(footer, file.length).blocks.length, 1);
    const reasons = new Set<string>();
    for (let at = 0; at + 4 <= footer.length; at += 4) {
      for (let value = -2_000_000_000; value < 0; value = value < -footer.length ? -footer.length : value + 4) {
        const bytes = Buffer.from(footer);
        bytes.writeInt32LE(value, at);
        try {
          decodeFooter(bytes, file.length);
        } catch (error) {
          reasons.add((error as Error).message);
        }
      }
    }
    for (const reason of ['batch 0 leads out of the file', 'its metadata has tables within themselves'])
      assert.ok(reasons.has(reason), `${reason}: ${[...reasons].join('; ')}`);
  }));
