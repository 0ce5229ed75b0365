import { createHash } from 'node:crypto';
import { constants, createReadStream } from 'node:fs';
import { access, open, readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { stageFile, writeFileAtomically } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import { sendEach } from '../transfer/send-each.ts';
import { refuseChanged } from './local-content.ts';
import type { RemoteBody, RemoteWriter } from './remote-store.ts';

const CHUNK_BYTES = 1 << 20;

const isAbsent = (error: unknown) => ['ENOENT', 'ENOTDIR'].includes((error as NodeJS.ErrnoException).code ?? '');

/** A remote in a folder, such as a share that a team has mounted. */
export function openFolderStore(folder: string): RemoteWriter {
  const place = (key: string) => join(folder, ...key.split('/'));

  const sizeOf = async (key: string): Promise<number | undefined> => {
    try {
      const entry = await stat(place(key));
      return entry.isFile() ? entry.size : undefined;
    } catch (error) {
      if (isAbsent(error)) return undefined;
      throw explainAccess(place(key), error);
    }
  };

  const read = async (key: string, offset: number): Promise<RemoteBody | undefined> => {
    const totalBytes = await sizeOf(key);
    if (totalBytes === undefined) return undefined;
    if (totalBytes <= offset) return { offset, totalBytes, chunks: none() };
    await access(place(key), constants.R_OK).catch((error: unknown) => {
      throw explainAccess(place(key), error);
    });
    return { offset, totalBytes, chunks: createReadStream(place(key), { start: offset, highWaterMark: CHUNK_BYTES }) };
  };

  return {
    where: folder,
    read,
    list: async (top) => {
      try {
        const entries = await readdir(place(top), { recursive: true, withFileTypes: true });
        return entries
          .filter((entry) => entry.isFile())
          .map((entry) =>
            join(entry.parentPath, entry.name)
              .slice(folder.length + 1)
              .replaceAll('\\', '/'),
          );
      } catch (error) {
        if (isAbsent(error)) return [];
        throw explainAccess(place(top), error);
      }
    },
    sizes: async (blobs) => {
      const found = new Map<string, number>();
      for (const { key } of blobs) {
        const sizeBytes = await sizeOf(key);
        if (sizeBytes !== undefined) found.set(key, sizeBytes);
      }
      return found;
    },
    send: (blobs, options) =>
      sendEach(blobs, options, async (blob) => {
        const staged = await stageFile(place(blob.key));
        const handle = await open(blob.localPath, 'r');
        try {
          const hash = createHash('sha256');
          for await (const chunk of handle.createReadStream({ highWaterMark: CHUNK_BYTES, autoClose: false })) {
            options.signal?.throwIfAborted();
            hash.update(chunk as Buffer);
            await staged.write(chunk as Buffer);
            options.onBytes((chunk as Buffer).length);
          }
          refuseChanged(blob, hash.digest('hex'));
          await staged.commit();
        } finally {
          await handle.close();
          await staged.abort();
        }
      }),
    publish: async (files) => {
      for (const { key, content } of files) await writeFileAtomically(place(key), content);
    },
    close: () => {},
  };
}

async function* none(): AsyncGenerator<Uint8Array> {}

function explainAccess(path: string, cause: unknown): unknown {
  const { code } = cause as NodeJS.ErrnoException;
  if (code !== 'EACCES' && code !== 'EPERM') return cause;
  return new StillhouseError({
    code: 'REMOTE_ACCESS_DENIED',
    where: path,
    problem: `the file cannot be read (${code})`,
    remedy: 'Check the permissions of the remote',
    cause,
  });
}
