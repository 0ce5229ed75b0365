import { join } from 'node:path';
import { hashFile } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import type { ListedFile } from '../format/manifest.ts';
import { type FileStamp, requireStamp, sameStamp } from './file-stamp.ts';
import { readPulledState } from './pulled-state.ts';

export { type FileStamp, readStamp, sameStamp } from './file-stamp.ts';

/** A file of a cache on this machine, with the content that the manifest says. */
export interface LocalFile {
  readonly path: string;
  /** The file is no longer read from. */
  release(): void;
}

/** Where the files of a cache are. A folder is the usual place; another may fetch them when they are first read. */
export interface CacheFiles {
  /** The cache in messages and reports: a folder or a location. */
  readonly where: string;
  /** Folder with the files of the group `tokenizer`, if that group is there. */
  readonly tokenizerFolder: string;
  /** @throws StillhouseError CACHE_FILE_MISSING, CACHE_FILE_DAMAGED if that can be told without reading the file */
  check(file: ListedFile): Promise<void>;
  /**
   * The file, whole and verified; it stays where it is until it is released.
   * @throws StillhouseError CACHE_FILE_MISSING, CACHE_FILE_DAMAGED
   */
  acquire(file: ListedFile): Promise<LocalFile>;
  /**
   * Gives a way to release a file that is open but idle, for a source that runs out of room; false if there is none.
   */
  setIdleCloser?(closeIdle: () => Promise<boolean>): void;
  close(): Promise<void>;
}

const REMEDY = 'Fetch the file again, or build the cache anew';

/**
 * The files of a cache in a folder. Each is hashed when it is first acquired; later its size and times are compared
 * and it is hashed again only if they have changed. What `cache pull` hashed counts as hashed.
 */
export async function openFolderFiles(
  folder: string,
  { verifyOnRead }: { readonly verifyOnRead?: 'first-touch' | 'never' },
): Promise<CacheFiles> {
  const pulled = await readPulledState(folder);
  const hashed = new Map<string, Promise<FileStamp>>();

  const hash = async (file: ListedFile, stamp: FileStamp): Promise<FileStamp> => {
    const path = join(folder, file.path);
    const { sha256 } = await hashFile(path);
    if (sha256 === file.sha256) return stamp;
    throw new StillhouseError({
      code: 'CACHE_FILE_DAMAGED',
      where: path,
      problem: 'the content is not what was written',
      expected: `sha256 ${file.sha256}`,
      got: sha256,
      remedy: REMEDY,
    });
  };

  const verify = async (file: ListedFile): Promise<void> => {
    const stamp = await requireStamp(join(folder, file.path), file, REMEDY);
    if (verifyOnRead === 'never') return;
    const known = hashed.get(file.path);
    if (known !== undefined && sameStamp(await known, stamp)) return;
    const remembered = pulled?.files[file.path];
    if (known === undefined && remembered?.sha256 === file.sha256 && sameStamp(remembered, stamp)) {
      hashed.set(file.path, Promise.resolve(stamp));
      return;
    }
    const hashing = hash(file, stamp);
    hashed.set(file.path, hashing);
    try {
      await hashing;
    } catch (error) {
      hashed.delete(file.path);
      throw error;
    }
  };

  return {
    where: folder,
    tokenizerFolder: join(folder, 'tokenizer'),
    check: async (file) => {
      await requireStamp(join(folder, file.path), file, REMEDY);
    },
    acquire: async (file) => {
      await verify(file);
      return { path: join(folder, file.path), release: () => {} };
    },
    close: async () => {},
  };
}
