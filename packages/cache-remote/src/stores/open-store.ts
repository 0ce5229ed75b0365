import { StillhouseError } from '@stillhouse/errors';
import type { RemoteLocation } from '../layout/location.ts';
import { openFolderStore } from './folder-store.ts';
import { openHttpStore } from './http-store.ts';
import type { RemoteReader, RemoteWriter } from './remote-store.ts';

/** Clients of services are loaded only when they are needed. */
export async function openReader({ place }: RemoteLocation): Promise<RemoteReader> {
  switch (place.kind) {
    case 'folder':
      return openFolderStore(place.folder);
    case 'http':
      return openHttpStore(place.url);
    case 's3':
      return (await import('./s3-store.ts')).openS3Store(place);
    case 'hub':
      return (await import('./hub-store.ts')).openHubStore(place);
  }
}

/** @throws StillhouseError REMOTE_READ_ONLY */
export async function openWriter(location: RemoteLocation): Promise<RemoteWriter> {
  const { place } = location;
  if (place.kind === 'http') {
    throw new StillhouseError({
      code: 'REMOTE_READ_ONLY',
      where: location.text,
      problem: 'a web server can be read from only',
      expected: 'a folder, s3:// or hf://',
      remedy: 'Push to a folder that the server serves',
    });
  }
  return (await openReader(location)) as RemoteWriter;
}
