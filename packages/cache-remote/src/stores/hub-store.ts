import { pathToFileURL } from 'node:url';
import { commit, downloadFile, fileDownloadInfo, type HubApiError, listFiles, pathsInfo } from '@huggingface/hub';
import { hashFile } from '@stillhouse/durable-files';
import { explainCause } from '../transfer/redact.ts';
import { PassingFault, type TransferPolicy, withRetries } from '../transfer/transfer-policy.ts';
import { attemptAtHub, fetchPatiently, fetchUntil } from './hub-requests.ts';
import { readHubToken } from './hub-token.ts';
import { refuseChanged } from './local-content.ts';
import type { BlobToSend, RemoteWriter } from './remote-store.ts';
import { allowTimeFor } from './s3-bytes.ts';

/** A commit of the hub holds so much at most, so that a push that is broken off has brought what came before. */
const COMMIT_FILES = 50;
const COMMIT_BYTES = 2 ** 30;
/** Paths that are asked for at once. */
const PATHS_AT_ONCE = 200;

export interface HubPlace {
  readonly repository: string;
  readonly revision: string;
  readonly prefix: string;
}

/** A repository as the hub's client is asked for it. */
interface HubRepository {
  readonly where: string;
  readonly revision: string;
  readonly base: {
    readonly repo: { readonly type: 'dataset'; readonly name: string };
    readonly accessToken?: string;
    readonly hubUrl?: string;
  };
  pathOf(key: string): string;
  attempt<T>(key: string, work: () => Promise<T>): Promise<T>;
}

async function openRepository({ repository, revision, prefix }: HubPlace): Promise<HubRepository> {
  const accessToken = await readHubToken();
  const where = `hf://datasets/${repository}@${revision}${prefix === '' ? '' : `/${prefix}`}`;
  return {
    where,
    revision,
    base: {
      repo: { type: 'dataset', name: repository },
      ...(accessToken === undefined ? {} : { accessToken }),
      ...(process.env.HF_ENDPOINT ? { hubUrl: process.env.HF_ENDPOINT.replace(/\/+$/, '') } : {}),
    },
    pathOf: (key) => (prefix === '' ? key : `${prefix}/${key}`),
    attempt: (key, work) => attemptAtHub(where, key, work),
  };
}

/**
 * A data set repository of Hugging Face, by its official client. Contents go through Git LFS, plain and in parts; the
 * hub itself does not take a content twice.
 */
export async function openHubStore(place: HubPlace): Promise<RemoteWriter> {
  const repository = await openRepository(place);
  const { where } = repository;
  return {
    where,
    ...openHubReading(repository),
    sizes: (blobs, options) => measureBlobs(repository, blobs, options),
    send: async (blobs, options) => {
      for (const batch of splitBatches(blobs)) {
        const sizeBytes = batch.reduce((sum, blob) => sum + blob.sizeBytes, 0);
        for (const blob of batch) refuseChanged(blob, (await hashFile(blob.localPath)).sha256);
        const files = batch.map(({ key, localPath }) => ({ key, content: pathToFileURL(localPath) }));
        const content = { files, title: `${batch.length} files of a cache` };
        await withRetries(where, allowTimeFor(options.policy, sizeBytes), options.signal, (guarded) =>
          commitFiles(repository, content, guarded, options.policy),
        );
        for (const blob of batch) {
          options.onBytes(blob.sizeBytes);
          options.onSent(blob);
        }
      }
    },
    publish: async (small, title, { policy, signal }) => {
      const files = small.map(({ key, content: bytes }) => ({
        key,
        content: new Blob([bytes as Uint8Array<ArrayBuffer>]),
      }));
      const sizeBytes = small.reduce((sum, file) => sum + file.content.length, 0);
      await withRetries(where, allowTimeFor(policy, sizeBytes), signal, (guarded) =>
        commitFiles(repository, { files, title }, guarded, policy),
      );
    },
    close: () => {},
  };
}

function openHubReading({ base, revision, pathOf, attempt }: HubRepository): Pick<RemoteWriter, 'read' | 'list'> {
  return {
    read: (key, offset, signal) =>
      attempt(key, async () => {
        const query = { ...base, revision, path: pathOf(key), fetch: fetchUntil(signal) };
        const downloadInfo = await fileDownloadInfo(query);
        if (downloadInfo === null) return undefined;
        const totalBytes = downloadInfo.size;
        if (offset >= totalBytes) return { offset: 0, totalBytes, chunks: none() };
        const blob = await downloadFile({ ...query, downloadInfo, xet: false });
        const rest = offset === 0 ? blob! : blob!.slice(offset, totalBytes);
        return { offset, totalBytes, chunks: passFaults(rest.stream()) };
      }),
    list: (folder, signal) =>
      attempt(folder, async () => {
        const keys: string[] = [];
        try {
          const start = pathOf(folder);
          const query = { ...base, revision, path: start, recursive: true, fetch: fetchUntil(signal) };
          for await (const entry of listFiles(query)) {
            if (entry.type === 'file') keys.push(entry.path.slice(start.length - folder.length));
          }
        } catch (error) {
          // A folder that is not there yet, in a repository that is.
          const { statusCode, message } = error as Partial<HubApiError>;
          const isEntry = statusCode === 404 && /does not exist on|entry not found/i.test(message ?? '');
          if (!isEntry) throw error;
        }
        return keys;
      }),
  };
}

async function measureBlobs(
  { where, base, revision, pathOf, attempt }: HubRepository,
  blobs: readonly BlobToSend[],
  { policy, signal }: { readonly policy: TransferPolicy; readonly signal: AbortSignal | undefined },
): Promise<ReadonlyMap<string, number>> {
  const sizes = new Map<string, number>();
  const hashes = new Map(blobs.map(({ key, sha256 }) => [pathOf(key), { key, sha256 }]));
  const all = [...hashes.keys()];
  for (let first = 0; first < all.length; first += PATHS_AT_ONCE) {
    const paths = all.slice(first, first + PATHS_AT_ONCE);
    const found = await withRetries(where, policy, signal, (guarded) =>
      attempt('blobs', () => pathsInfo({ ...base, revision, paths, fetch: fetchUntil(guarded) })),
    );
    for (const { path: at, size, lfs } of found) {
      const own = hashes.get(at);
      if (own !== undefined && (lfs === undefined || lfs.oid === own.sha256)) sizes.set(own.key, size);
    }
  }
  return sizes;
}

interface HubCommit {
  readonly files: readonly { readonly key: string; readonly content: Blob | URL }[];
  readonly title: string;
}

/** One commit; its requests are tried again each alone. */
async function commitFiles(
  { where, base, revision, pathOf, attempt }: HubRepository,
  { files, title }: HubCommit,
  signal: AbortSignal,
  policy: TransferPolicy,
): Promise<void> {
  await attempt(files[0]!.key, () =>
    commit({
      ...base,
      branch: revision,
      title,
      useXet: false,
      abortSignal: signal,
      fetch: fetchPatiently(where, signal, policy),
      operations: files.map(({ key, content }) => ({ operation: 'addOrUpdate', path: pathOf(key), content })),
    }),
  );
}

function* splitBatches(blobs: readonly BlobToSend[]): Generator<readonly BlobToSend[]> {
  let batch: BlobToSend[] = [];
  let sizeBytes = 0;
  for (const blob of blobs) {
    if (batch.length === COMMIT_FILES || (batch.length > 0 && sizeBytes + blob.sizeBytes > COMMIT_BYTES)) {
      yield batch;
      batch = [];
      sizeBytes = 0;
    }
    batch.push(blob);
    sizeBytes += blob.sizeBytes;
  }
  if (batch.length > 0) yield batch;
}

async function* none(): AsyncGenerator<Uint8Array> {}

async function* passFaults(stream: ReadableStream<Uint8Array>): AsyncGenerator<Uint8Array> {
  try {
    yield* stream as unknown as AsyncIterable<Uint8Array>;
  } catch (cause) {
    throw new PassingFault(`the connection broke (${explainCause(cause)})`);
  }
}
