import { pathToFileURL } from 'node:url';
import { commit, downloadFile, fileDownloadInfo, HubApiError, listFiles, pathsInfo } from '@huggingface/hub';
import { hashFile } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import { explainCause } from '../transfer/redact.ts';
import { createPatience, PassingFault, type TransferPolicy, withRetries } from '../transfer/transfer-policy.ts';
import { explainStatus, isPassingStatus } from './http-status.ts';
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

/**
 * A data set repository of Hugging Face, by its official client. Contents go through Git LFS, plain and in parts; the hub
 * itself does not take a content twice.
 */
export async function openHubStore({ repository, revision, prefix }: HubPlace): Promise<RemoteWriter> {
  const accessToken = await readHubToken();
  const where = `hf://datasets/${repository}@${revision}${prefix === '' ? '' : `/${prefix}`}`;
  const path = (key: string) => (prefix === '' ? key : `${prefix}/${key}`);
  const base = {
    repo: { type: 'dataset', name: repository } as const,
    ...(accessToken === undefined ? {} : { accessToken }),
    ...(process.env.HF_ENDPOINT ? { hubUrl: process.env.HF_ENDPOINT.replace(/\/+$/, '') } : {}),
  };
  const fetchUntil =
    (signal: AbortSignal): typeof fetch =>
    (input, init) =>
      fetch(input, { ...init, signal: init?.signal ? AbortSignal.any([init.signal, signal]) : signal });

  /** One request of many that make a commit: it is tried again alone, what went before it stands. */
  const fetchPatiently =
    (signal: AbortSignal, policy: TransferPolicy): typeof fetch =>
    async (input, init) => {
      const patience = createPatience(where, policy, signal);
      for (;;) {
        try {
          const response = await fetchUntil(signal)(input, init);
          if (!isPassingStatus(response.status)) return response;
          await response.body?.cancel();
          throw explainStatus(where, response.status, response.headers.get('retry-after'));
        } catch (error) {
          signal.throwIfAborted();
          await patience.wait(
            error instanceof TypeError ? new PassingFault('the hub cannot be reached', { cause: error }) : error,
          );
        }
      }
    };

  const explain = (key: string, error: unknown): unknown => {
    if (error instanceof StillhouseError || error instanceof PassingFault) return error;
    if (error instanceof HubApiError) {
      const { statusCode, data } = error;
      const message = String((data as { readonly error?: unknown } | undefined)?.error ?? '');
      if (statusCode === 404) {
        return new StillhouseError({
          code: 'REMOTE_NOT_FOUND',
          where,
          problem: 'there is no such repository or revision, or the token may not see it',
          remedy: 'Create the data set repository first, or check HF_TOKEN',
        });
      }
      // Another push came in between; the same commit on top of it is as good.
      if (statusCode === 409 || statusCode === 412)
        return new PassingFault(`the hub answered ${statusCode} ${message}`);
      return explainStatus(`${where}/${key}`, statusCode);
    }
    return new PassingFault('the hub cannot be reached', { cause: error });
  };
  const attempt = async <T>(key: string, work: () => Promise<T>): Promise<T> => {
    try {
      return await work();
    } catch (error) {
      throw explain(key, error);
    }
  };

  const read: RemoteWriter['read'] = (key, offset, signal) =>
    attempt(key, async () => {
      const query = { ...base, revision, path: path(key), fetch: fetchUntil(signal) };
      const downloadInfo = await fileDownloadInfo(query);
      if (downloadInfo === null) return undefined;
      const totalBytes = downloadInfo.size;
      if (offset >= totalBytes) return { offset: 0, totalBytes, chunks: none() };
      const blob = await downloadFile({ ...query, downloadInfo, xet: false });
      const rest = offset === 0 ? blob! : blob!.slice(offset, totalBytes);
      return { offset, totalBytes, chunks: passFaults(rest.stream()) };
    });

  const put = (
    files: readonly { readonly key: string; readonly content: Blob | URL }[],
    title: string,
    guarded: AbortSignal,
    policy: TransferPolicy,
  ) =>
    attempt(files[0]!.key, () =>
      commit({
        ...base,
        branch: revision,
        title,
        useXet: false,
        abortSignal: guarded,
        fetch: fetchPatiently(guarded, policy),
        operations: files.map(({ key, content }) => ({ operation: 'addOrUpdate', path: path(key), content })),
      }),
    );

  return {
    where,
    read,
    list: (folder, signal) =>
      attempt(folder, async () => {
        const keys: string[] = [];
        try {
          const start = path(folder);
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
    sizes: async (blobs, { policy, signal }) => {
      const sizes = new Map<string, number>();
      const hashes = new Map(blobs.map(({ key, sha256 }) => [path(key), { key, sha256 }]));
      const paths = [...hashes.keys()];
      for (let first = 0; first < paths.length; first += PATHS_AT_ONCE) {
        const found = await withRetries(where, policy, signal, (guarded) =>
          attempt('blobs', () =>
            pathsInfo({
              ...base,
              revision,
              paths: paths.slice(first, first + PATHS_AT_ONCE),
              fetch: fetchUntil(guarded),
            }),
          ),
        );
        for (const { path: at, size, lfs } of found) {
          const own = hashes.get(at);
          if (own !== undefined && (lfs === undefined || lfs.oid === own.sha256)) sizes.set(own.key, size);
        }
      }
      return sizes;
    },
    send: async (blobs, options) => {
      for (const batch of splitBatches(blobs)) {
        const sizeBytes = batch.reduce((sum, blob) => sum + blob.sizeBytes, 0);
        for (const blob of batch) refuseChanged(blob, (await hashFile(blob.localPath)).sha256);
        const content = batch.map(({ key, localPath }) => ({ key, content: pathToFileURL(localPath) }));
        await withRetries(where, allowTimeFor(options.policy, sizeBytes), options.signal, (guarded) =>
          put(content, `${batch.length} files of a cache`, guarded, options.policy),
        );
        for (const blob of batch) {
          options.onBytes(blob.sizeBytes);
          options.onSent(blob);
        }
      }
    },
    publish: async (files, message, { policy, signal }) => {
      const content = files.map(({ key, content: bytes }) => ({
        key,
        content: new Blob([bytes as Uint8Array<ArrayBuffer>]),
      }));
      const sizeBytes = files.reduce((sum, file) => sum + file.content.length, 0);
      await withRetries(where, allowTimeFor(policy, sizeBytes), signal, (guarded) =>
        put(content, message, guarded, policy),
      );
    },
    close: () => {},
  };
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
