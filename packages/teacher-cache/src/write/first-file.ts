import { link, rename, rm } from 'node:fs/promises';
import { explainWriteFailure } from '@stillhouse/durable-files';

/** Moves `own` to `path`, unless another builder was first: then that file stays, and `own` goes. */
export async function publishFirst(own: string, path: string): Promise<void> {
  try {
    await link(own, path);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    // A file system without hard links: the last one wins, with the same bytes on machines of the same kind.
    if (code === 'EPERM' || code === 'ENOTSUP' || code === 'EOPNOTSUPP' || code === 'ENOSYS') return rename(own, path);
    if (code !== 'EEXIST') throw explainWriteFailure(path, error);
  }
  await rm(own, { force: true });
}
