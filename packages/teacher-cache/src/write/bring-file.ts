import { createReadStream } from 'node:fs';
import { link } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { makeFolder, stageFile } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import type { ListedFile } from '../format/manifest.ts';
import { readStamp, requireStamp } from '../read/file-stamp.ts';

/**
 * Brings a file of one cache folder into another: as a hard link where that is possible, since files of caches are
 * never written to again, else as a copy whose hash is compared.
 * @throws StillhouseError CACHE_FILE_MISSING, CACHE_FILE_DAMAGED, DISK_FULL, NOT_WRITABLE
 */
export async function bringFile(from: string, to: string, file: ListedFile): Promise<void> {
  const source = join(from, file.path);
  const target = join(to, file.path);
  if ((await readStamp(target))?.sizeBytes === file.sizeBytes) return;
  await requireStamp(source, file, 'Run `stillhouse cache verify` and `stillhouse cache repair` on its folder');
  await makeFolder(dirname(target));
  const isLinked = await link(source, target).then(
    () => true,
    () => false,
  );
  if (!isLinked) await copyFile(source, target, file);
}

async function copyFile(source: string, target: string, file: ListedFile): Promise<void> {
  const staged = await stageFile(target);
  try {
    for await (const chunk of createReadStream(source, { highWaterMark: 1 << 20 })) await staged.write(chunk as Buffer);
    const { sha256 } = await staged.commit();
    if (sha256 === file.sha256) return;
    throw new StillhouseError({
      code: 'CACHE_FILE_DAMAGED',
      where: source,
      problem: 'the content is not what was written',
      expected: `sha256 ${file.sha256}`,
      got: sha256,
      remedy: 'Run `stillhouse cache repair` on its folder',
    });
  } finally {
    await staged.abort();
  }
}
