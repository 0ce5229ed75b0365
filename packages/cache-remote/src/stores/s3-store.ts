import { createHash } from 'node:crypto';
import type { Readable } from 'node:stream';
import {
  GetObjectCommand,
  HeadObjectCommand,
  PutObjectCommand,
  paginateListObjectsV2,
  S3Client,
} from '@aws-sdk/client-s3';
import { forEachConcurrently, sendEach } from '../transfer/send-each.ts';
import { DEFAULT_POLICY, PassingFault, type TransferPolicy, withRetries } from '../transfer/transfer-policy.ts';
import { explainStatus, readContentRange } from './http-status.ts';
import { refuseChanged } from './local-content.ts';
import type { BlobToSend, RemoteWriter, SendOptions } from './remote-store.ts';
import { allowTimeFor, PART_BYTES, readRange, requireSame } from './s3-bytes.ts';
import { explainS3Failure, statusOf } from './s3-failure.ts';
import { sendInParts } from './s3-multipart.ts';

export interface S3Place {
  readonly bucket: string;
  readonly prefix: string;
}

/**
 * S3 or storage that speaks its protocol. Endpoint, region and credentials come from the AWS environment variables and
 * files alone, as the AWS SDK reads them.
 */
export async function openS3Store(place: S3Place): Promise<RemoteWriter> {
  const bucket = await openBucket(place);
  const { client, where, at, attempt } = bucket;

  const put = (key: string, bytes: Uint8Array, policy: TransferPolicy, signal: AbortSignal | undefined) =>
    withRetries(`${where}/${key}`, allowTimeFor(policy, bytes.length), signal, async (guarded) => {
      const answer = await attempt(key, () =>
        client.send(new PutObjectCommand({ ...at(key), Body: bytes }), { abortSignal: guarded }),
      );
      if (answer === undefined) throw explainStatus(`${where}/${key}`, 404);
      requireSame(bytes, answer);
    });

  const sendSmall = async (blob: BlobToSend, { policy, signal, onBytes }: SendOptions) => {
    const bytes = await readRange(blob.localPath, 0, blob.sizeBytes);
    refuseChanged(blob, createHash('sha256').update(bytes).digest('hex'));
    await put(blob.key, bytes, policy, signal);
    onBytes(blob.sizeBytes);
  };

  const sizes: RemoteWriter['sizes'] = async (blobs, { policy, signal }) => {
    const found = new Map<string, number>();
    await forEachConcurrently(blobs, policy.concurrency, signal, async ({ key }, aborted) => {
      const head = await withRetries(`${where}/${key}`, policy, aborted, (guarded) =>
        attempt(key, () => client.send(new HeadObjectCommand(at(key)), { abortSignal: guarded })),
      );
      if (head?.ContentLength !== undefined) found.set(key, head.ContentLength);
    });
    return found;
  };

  return {
    where,
    ...openS3Reading(bucket),
    sizes,
    send: (blobs, options) =>
      sendEach(blobs, options, (blob, signal) =>
        blob.sizeBytes <= PART_BYTES
          ? sendSmall(blob, { ...options, signal })
          : sendInParts({ client, ...at(blob.key), where: `${where}, ${blob.name}` }, blob, { ...options, signal }),
      ),
    publish: async (files, _message, { policy, signal }) => {
      for (const { key, content } of files) await put(key, content, policy, signal);
    },
    close: () => client.destroy(),
  };
}

/** A folder of a bucket. */
interface Bucket {
  readonly client: S3Client;
  readonly where: string;
  /** What names an object in requests. */
  at(key: string): { readonly Bucket: string; readonly Key: string };
  /** Does what may fail; undefined if the key is not there, while a bucket that is not there is a failure. */
  attempt<T>(key: string, work: () => Promise<T>): Promise<T | undefined>;
}

async function openBucket({ bucket, prefix }: S3Place): Promise<Bucket> {
  const where = `s3://${bucket}${prefix === '' ? '' : `/${prefix}`}`;
  return {
    client: await createClient(),
    where,
    at: (key) => ({ Bucket: bucket, Key: prefix === '' ? key : `${prefix}/${key}` }),
    attempt: async (key, work) => {
      try {
        return await work();
      } catch (error) {
        const { name } = error as Error;
        if (statusOf(error) === 404 && name !== 'NoSuchBucket') return undefined;
        throw explainS3Failure(`${where}/${key}`, error);
      }
    },
  };
}

function openS3Reading({ client, at, attempt }: Bucket): Pick<RemoteWriter, 'read' | 'list'> {
  return {
    read: async (key, offset, signal) => {
      const range = offset > 0 ? { Range: `bytes=${offset}-` } : {};
      const found = await attempt(key, async () => {
        try {
          return await client.send(new GetObjectCommand({ ...at(key), ...range }), { abortSignal: signal });
        } catch (error) {
          if (statusOf(error) !== 416 || offset === 0) throw error;
          return client.send(new GetObjectCommand(at(key)), { abortSignal: signal });
        }
      });
      if (found === undefined) return undefined;
      const part = readContentRange(found.ContentRange);
      return {
        offset: part?.first ?? 0,
        totalBytes: part === undefined ? found.ContentLength : part.total,
        chunks: passFaults(found.Body as Readable),
      };
    },
    list: async (folder, signal) => {
      const { Bucket, Key: start } = at(`${folder}/`);
      const keys: string[] = [];
      await attempt(folder, async () => {
        const pages = paginateListObjectsV2({ client }, { Bucket, Prefix: start }, { abortSignal: signal });
        for await (const { Contents = [] } of pages) {
          for (const { Key = '' } of Contents) keys.push(Key.slice(start.length - folder.length - 1));
        }
      });
      return keys;
    },
  };
}

async function createClient(): Promise<S3Client> {
  const settings = {
    // We try again ourselves, with resumption.
    maxAttempts: 1,
    followRegionRedirects: true,
    // A connection on which nothing moves, in either direction, is given up.
    requestHandler: { connectionTimeout: DEFAULT_POLICY.windowMs, socketTimeout: DEFAULT_POLICY.windowMs },
    // Contents are checked by their sha256.
    responseChecksumValidation: 'WHEN_REQUIRED',
  } as const;
  const probe = new S3Client(settings) as S3Client & {
    readonly config: { readonly serviceConfiguredEndpoint?: () => Promise<string | undefined> };
  };
  const endpoint = await probe.config.serviceConfiguredEndpoint?.();
  const region = await probe.config.region().catch(() => undefined);
  if (endpoint === undefined && region !== undefined) return probe;
  probe.destroy();
  return new S3Client({
    ...settings,
    // Storage under an address of its own seldom has one name for each bucket.
    ...(endpoint === undefined ? {} : { endpoint, forcePathStyle: true }),
    // As the AWS tools do where none is configured; S3 redirects to the right one.
    ...(region === undefined ? { region: 'us-east-1' } : {}),
  });
}

async function* passFaults(body: Readable): AsyncGenerator<Uint8Array> {
  try {
    yield* body as AsyncIterable<Uint8Array>;
  } catch (cause) {
    throw new PassingFault('the connection broke', { cause });
  }
}
