import { createHash } from 'node:crypto';
import {
  AbortMultipartUploadCommand,
  CompleteMultipartUploadCommand,
  CreateMultipartUploadCommand,
  HeadObjectCommand,
  ListMultipartUploadsCommand,
  ListPartsCommand,
  type Part,
  type S3Client,
  UploadPartCommand,
} from '@aws-sdk/client-s3';
import { withRetries } from '../transfer/transfer-policy.ts';
import { explainStatus } from './http-status.ts';
import { refuseChanged } from './local-content.ts';
import type { BlobToSend, SendOptions } from './remote-store.ts';
import { allowTimeFor, PART_BYTES, readRange, requireSame } from './s3-bytes.ts';
import { explainS3Failure, statusOf } from './s3-failure.ts';

/** S3 takes no more parts than this. */
const PARTS_LIMIT = 10_000;

export interface S3Target {
  readonly client: S3Client;
  readonly Bucket: string;
  readonly Key: string;
  /** The file in messages. */
  readonly where: string;
}

/** How often an upload may be ended by others, such as a second push of the same content, before we give up. */
const UPLOAD_ATTEMPTS = 3;

/**
 * Sends a large file in parts. An upload that was broken off goes on: parts that are there with our MD5 are not sent
 * again. The object appears when all parts are there and the bytes that were read had the file's sha256.
 */
export async function sendInParts(target: S3Target, blob: BlobToSend, options: SendOptions): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await sendOnce(target, blob, options);
    } catch (error) {
      if (!(error instanceof UploadGone)) throw error;
      const { client, Bucket, Key } = target;
      const head = await client.send(new HeadObjectCommand({ Bucket, Key })).catch(() => undefined);
      if (head?.ContentLength === blob.sizeBytes) return;
      if (attempt === UPLOAD_ATTEMPTS) throw explainStatus(target.where, 404);
    }
  }
}

/** The upload was ended, by us in a request whose answer was lost, or by others. */
class UploadGone extends Error {
  override readonly name = 'UploadGone';
}

async function sendOnce(target: S3Target, blob: BlobToSend, options: SendOptions): Promise<void> {
  const { client, Bucket, Key, where } = target;
  const { policy, signal, onBytes } = options;
  const call = <T>(work: (guarded: AbortSignal) => Promise<T>, sizeBytes = 0): Promise<T> =>
    withRetries(where, allowTimeFor(policy, sizeBytes), signal, (guarded) =>
      work(guarded).catch((error: unknown) => {
        if ((error as Error).name === 'NoSuchUpload') throw new UploadGone();
        throw explainS3Failure(where, error);
      }),
    );
  const partBytes = Math.max(PART_BYTES, Math.ceil(blob.sizeBytes / PARTS_LIMIT));
  const begun = await findUpload(target, call);
  const uploadId =
    begun ??
    (await call((abortSignal) => client.send(new CreateMultipartUploadCommand({ Bucket, Key }), { abortSignal })))
      .UploadId!;
  const there = begun === undefined ? new Map<number, Part>() : await listParts(target, begun, call);
  const hash = createHash('sha256');
  const parts: { readonly PartNumber: number; readonly ETag: string }[] = [];
  for (let start = 0; start < blob.sizeBytes; start += partBytes) {
    const PartNumber = start / partBytes + 1;
    const bytes = await readRange(blob.localPath, start, Math.min(start + partBytes, blob.sizeBytes));
    hash.update(bytes);
    const md5 = createHash('md5').update(bytes).digest('hex');
    const known = there.get(PartNumber);
    if (known?.Size === bytes.length && known.ETag?.replaceAll('"', '') === md5) {
      parts.push({ PartNumber, ETag: known.ETag });
    } else {
      const answer = await call(async (abortSignal) => {
        const command = new UploadPartCommand({ Bucket, Key, UploadId: uploadId, PartNumber, Body: bytes });
        const sent = await client.send(command, { abortSignal });
        requireSame(bytes, sent);
        return sent;
      }, bytes.length);
      parts.push({ PartNumber, ETag: answer.ETag! });
    }
    onBytes(bytes.length);
  }
  try {
    refuseChanged(blob, hash.digest('hex'));
  } catch (error) {
    await client.send(new AbortMultipartUploadCommand({ Bucket, Key, UploadId: uploadId })).catch(() => {});
    throw error;
  }
  await call((abortSignal) =>
    client.send(
      new CompleteMultipartUploadCommand({ Bucket, Key, UploadId: uploadId, MultipartUpload: { Parts: parts } }),
      { abortSignal },
    ),
  );
}

type Call = <T>(work: (signal: AbortSignal) => Promise<T>) => Promise<T>;

/** The newest upload of this object that was begun and not ended; none where listing uploads is not permitted. */
async function findUpload({ client, Bucket, Key }: S3Target, call: Call): Promise<string | undefined> {
  const { Uploads = [] } = await call(async (abortSignal) => {
    const command = new ListMultipartUploadsCommand({ Bucket, Prefix: Key });
    return client.send(command, { abortSignal }).catch((error: unknown) => {
      if ([403, 501].includes(statusOf(error) ?? 0)) return { Uploads: [] };
      throw error;
    });
  });
  const own = Uploads.filter((upload) => upload.Key === Key);
  own.sort((a, b) => Number(b.Initiated ?? 0) - Number(a.Initiated ?? 0));
  return own[0]?.UploadId;
}

function listParts(
  { client, Bucket, Key }: S3Target,
  UploadId: string,
  call: Call,
): Promise<ReadonlyMap<number, Part>> {
  return call(async (abortSignal) => {
    const parts = new Map<number, Part>();
    // By hand: the SDK's own paginator goes on for ever where storage names a next part that is not there.
    let marker: string | undefined;
    do {
      const position = marker === undefined ? {} : { PartNumberMarker: marker };
      const page = await client.send(new ListPartsCommand({ Bucket, Key, UploadId, ...position }), { abortSignal });
      for (const part of page.Parts ?? []) parts.set(part.PartNumber!, part);
      const next = page.IsTruncated === true ? page.NextPartNumberMarker : undefined;
      marker = next === marker ? undefined : next;
    } while (marker !== undefined);
    return parts;
  });
}
