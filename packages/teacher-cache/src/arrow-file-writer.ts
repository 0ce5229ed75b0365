import { type FileDigest, stageFile } from '@stillhouse/durable-files';
import { type RecordBatch, RecordBatchFileWriter } from 'apache-arrow';

/** A batch is closed once it holds so much: small enough for random access, large enough to stream. */
export const BATCH_TARGET_BYTES = 1 << 19;
/** apache-arrow corrupts column buffers of 2 GiB and more without a word, so none is let near. */
export const LARGEST_BUFFER_BYTES = 2 ** 31 - 2 ** 16;
const QUEUED_BYTES = 8 << 20;

/**
 * Writes an uncompressed Arrow IPC file, whole or not at all; no more than a few batches are in memory.
 * @throws StillhouseError DISK_FULL, NOT_WRITABLE; whatever `batches` throws
 */
export async function writeArrowFile(
  path: string,
  batches: Iterable<RecordBatch> | AsyncIterable<RecordBatch>,
): Promise<FileDigest> {
  const staged = await stageFile(path);
  try {
    for await (const chunk of encodeArrowFile(batches)) await staged.write(chunk);
    return await staged.commit();
  } finally {
    await staged.abort();
  }
}

/**
 * The library pushes an encoded file into a queue without bounds; this feeds it no faster than the consumer takes
 * chunks out, and joins small chunks so that a batch costs few writes.
 */
async function* encodeArrowFile(
  batches: Iterable<RecordBatch> | AsyncIterable<RecordBatch>,
): AsyncGenerator<Uint8Array> {
  const writer = new RecordBatchFileWriter();
  let queuedBytes = 0;
  let stopped = false;
  let wake = () => {};
  const feed = async () => {
    for await (const batch of batches) {
      if (stopped) return;
      queuedBytes += batch.data.byteLength;
      writer.write(batch);
      while (queuedBytes > QUEUED_BYTES && !stopped) await new Promise<void>((resolve) => (wake = resolve));
    }
    if (!stopped) writer.finish();
  };
  let failure: { readonly cause: unknown } | undefined;
  const feeding = feed().catch((cause: unknown) => {
    failure = { cause };
    writer.close();
  });
  try {
    let small: Uint8Array[] = [];
    let smallBytes = 0;
    for await (const chunk of writer) {
      // Headers and padding make the file longer than the batches: below 0 all of them are through.
      queuedBytes = Math.max(0, queuedBytes - chunk.byteLength);
      wake();
      small.push(chunk);
      smallBytes += chunk.byteLength;
      if (smallBytes < 1 << 16) continue;
      yield* small.length === 1 || chunk.byteLength >= 1 << 16
        ? [joinChunks(small.slice(0, -1)), chunk]
        : [joinChunks(small)];
      small = [];
      smallBytes = 0;
    }
    yield joinChunks(small);
  } finally {
    stopped = true;
    wake();
    await feeding;
  }
  if (failure !== undefined) throw failure.cause;
}

function joinChunks(chunks: readonly Uint8Array[]): Uint8Array {
  if (chunks.length === 1) return chunks[0]!;
  const joined = new Uint8Array(chunks.reduce((sum, chunk) => sum + chunk.byteLength, 0));
  let offset = 0;
  for (const chunk of chunks) {
    joined.set(chunk, offset);
    offset += chunk.byteLength;
  }
  return joined;
}
