import assert from 'node:assert/strict';
import { readFile, rm, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'vitest';
import { readManifest } from '../index.ts';
import { buildRandomCache } from '../testing/random-cache.ts';
import { inFolder } from '../testing/scratch-folder.ts';
import { openFolderFiles } from './cache-files.ts';

test('a file is hashed when it is first acquired, and again whenever its size or times have changed', () =>
  inFolder(async (folder) => {
    await buildRandomCache(folder, {
      seed: 3,
      rows: 2,
      rowsPerShard: 2,
      maxTokens: 8,
      vocabSize: 20,
      hiddenSize: 8,
      k: 2,
    });
    const file = (await readManifest(folder)).shards[0]!.files.rows;
    const path = join(folder, file.path);
    const sound = await readFile(path);
    const files = await openFolderFiles(folder, {});
    await files.acquire(file);
    const bad = Buffer.from(sound);
    bad[bad.length >> 1]! ^= 1;
    // The clock of a file system moves in steps of some milliseconds.
    await new Promise((resolve) => setTimeout(resolve, 20));
    await writeFile(path, bad);
    await assert.rejects(files.acquire(file), { code: 'CACHE_FILE_DAMAGED', message: /not what was written/ });
    // Times that are set back do not hide it: the change of status has a time of its own.
    await utimes(path, 1000, 1000);
    await assert.rejects(files.acquire(file), { code: 'CACHE_FILE_DAMAGED' });
    await writeFile(path, sound);
    await files.acquire(file);
    await writeFile(path, sound.subarray(1));
    await assert.rejects(files.acquire(file), { code: 'CACHE_FILE_DAMAGED', message: /length/ });
    await rm(path);
    await assert.rejects(files.acquire(file), { code: 'CACHE_FILE_MISSING' });
    const unchecked = await openFolderFiles(folder, { verifyOnRead: 'never' });
    await writeFile(path, bad);
    await unchecked.acquire(file);
  }));
