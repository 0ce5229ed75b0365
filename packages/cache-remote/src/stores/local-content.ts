import { StillhouseError } from '@stillhouse/errors';
import type { BlobToSend } from './remote-store.ts';

/** @throws StillhouseError CACHE_FILE_DAMAGED unless what was read is what the manifest says */
export function refuseChanged({ localPath, sha256 }: BlobToSend, found: string): void {
  if (found === sha256) return;
  throw new StillhouseError({
    code: 'CACHE_FILE_DAMAGED',
    where: localPath,
    problem: 'the content is not what was written, it was not sent',
    expected: `sha256 ${sha256}`,
    got: found,
    remedy: 'Repair the cache or build it anew, then push again',
  });
}
