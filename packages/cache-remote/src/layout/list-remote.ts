import { describeSize } from '@stillhouse/teacher-cache';
import { openReader } from '../stores/open-store.ts';
import { resolveTransfer, type TransferOptions } from '../transfer/transfer-options.ts';
import { parseLocation } from './location.ts';
import { readIndex, readRemoteManifest } from './remote-layout.ts';

export interface RemoteCache {
  readonly digest: string;
  /** The names that stand for it; none if every name has moved on. */
  readonly names: readonly string[];
  readonly rowCount: number;
  readonly positionCount: number;
  /** Name of the teacher, null for rows alone. */
  readonly teacher: string | null;
  readonly data: string;
  readonly sizeBytes: number;
  readonly groups: readonly { readonly group: string; readonly sizeBytes: number }[];
}

/**
 * The caches of a remote, those with a name first.
 * @param remote `PLACE`; a name behind it is not looked at
 * @throws StillhouseError REMOTE_LOCATION_INVALID, REMOTE_NOT_FOUND, REMOTE_INVALID, REMOTE_ACCESS_DENIED
 */
export async function listRemote(remote: string, options: TransferOptions = {}): Promise<readonly RemoteCache[]> {
  const store = await openReader(parseLocation(remote));
  try {
    const context = resolveTransfer(options);
    const { refs, caches } = await readIndex(store, context);
    const namesOf = (digest: string) => Object.keys(refs).filter((name) => refs[name] === digest);
    const found: RemoteCache[] = [];
    for (const digest of new Set([...Object.values(refs), ...caches])) {
      const remoteManifest = await readRemoteManifest(store, digest, context);
      if (remoteManifest === undefined) continue;
      const { manifest } = remoteManifest;
      const { totalBytes, positionCount, groups } = describeSize(manifest);
      found.push({
        digest,
        names: namesOf(digest).sort(),
        rowCount: manifest.rows.stored,
        positionCount,
        teacher: manifest.description.teacher?.name ?? null,
        data: manifest.description.data.name,
        sizeBytes: totalBytes,
        groups: groups.map(({ group, sizeBytes }) => ({ group, sizeBytes })),
      });
    }
    return found;
  } finally {
    store.close();
  }
}
