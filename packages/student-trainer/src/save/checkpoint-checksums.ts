import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type FileDigest, hashFile, writeFileAtomically } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';

/** sha256 and size of every other file of a checkpoint, by name. */
export const CHECKSUMS_FILE = 'checksums.json';

type Checksums = Readonly<Record<string, FileDigest>>;

export async function writeChecksums(folder: string, digests: Checksums): Promise<void> {
  await writeFileAtomically(join(folder, CHECKSUMS_FILE), `${JSON.stringify(digests, null, 2)}\n`);
}

/**
 * Hashes each of `files` again.
 * @param remedy what to do when one is not as it was written
 * @throws StillhouseError CHECKPOINT_DAMAGED naming the first such file
 */
export async function checkFiles(folder: string, files: readonly string[], remedy: string): Promise<void> {
  const refuse = (file: string, problem: string, more: { expected?: string; got?: string } = {}): never => {
    throw new StillhouseError({ code: 'CHECKPOINT_DAMAGED', where: join(folder, file), problem, ...more, remedy });
  };
  const checksums = await readChecksums(folder);
  if (checksums === undefined) return refuse(CHECKSUMS_FILE, 'the list of checksums is missing or cannot be read');
  for (const file of files) {
    const written = checksums[file];
    if (written === undefined) return refuse(CHECKSUMS_FILE, `${file} is not listed`);
    const found = await hashFile(join(folder, file)).catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return refuse(file, 'the file is missing');
      throw error;
    });
    if (found.sizeBytes !== written.sizeBytes) {
      refuse(file, 'the file has another size than was written', {
        expected: `${written.sizeBytes} bytes`,
        got: `${found.sizeBytes}`,
      });
    }
    if (found.sha256 !== written.sha256) {
      refuse(file, 'the content is not what was written', {
        expected: `sha256 ${written.sha256}`,
        got: found.sha256,
      });
    }
  }
}

async function readChecksums(folder: string): Promise<Checksums | undefined> {
  const text = await readFile(join(folder, CHECKSUMS_FILE), 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return '';
    throw error;
  });
  try {
    const parsed = JSON.parse(text) as unknown;
    return typeof parsed === 'object' && parsed !== null ? (parsed as Checksums) : undefined;
  } catch {
    return undefined;
  }
}
