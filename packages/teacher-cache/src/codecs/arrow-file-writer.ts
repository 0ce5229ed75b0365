import { type FileDigest, stageFile } from '@stillhouse/durable-files';
import { AsyncByteQueue, type RecordBatch, RecordBatchFileWriter } from 'apache-arrow';

/** A batch is closed once it holds so much: small enough for random access, large enough to stream. */
export const BATCH_TARGET_BYTES = 1 << 19;
/** apache-arrow corrupts column buffers of 2 GiB and more without a word, so none is let near. */
export const LARGEST_BUFFER_BYTES = 2 ** 31 - 2 ** 16;

/** An uncompressed Arrow IPC file that is written batch by batch, whole or not at all. One call at a time. */
export interface ArrowFileWriter {
  /** The memory of the batch may be used again once this settles. */
  write(batch: RecordBatch): Promise<void>;
  /** As of a staged file. */
  commit(): Promise<FileDigest>;
  abort(): Promise<void>;
}

/** @throws StillhouseError DISK_FULL, NOT_WRITABLE (from any of its methods too) */
export async function openArrowFileWriter(path: string): Promise<ArrowFileWriter> {
  const staged = await stageFile(path);
  const encoder = new RecordBatchFileWriter();
  // The library's own queue hands chunks on one promise each and has no end; this one is empty after every call.
  const queue = new AsyncByteQueue();
  let chunks: Uint8Array[] = [];
  queue.write = (chunk) => {
    chunks.push(toBytes(chunk as ArrayBufferView));
  };
  encoder.reset(queue);
  const flush = async () => {
    const ready = chunks;
    chunks = [];
    for (const chunk of ready) await staged.write(chunk);
  };
  return {
    write: async (batch) => {
      encoder.write(batch);
      await flush();
    },
    commit: async () => {
      encoder.finish();
      await flush();
      return staged.commit();
    },
    abort: () => staged.abort(),
  };
}

const toBytes = ({ buffer, byteOffset, byteLength }: ArrayBufferView) => new Uint8Array(buffer, byteOffset, byteLength);

/**
 * Writes an Arrow file of batches; each is out of memory before the next is asked for.
 * @throws StillhouseError DISK_FULL, NOT_WRITABLE; whatever `batches` throws
 */
export async function writeArrowFile(
  path: string,
  batches: Iterable<RecordBatch> | AsyncIterable<RecordBatch>,
): Promise<FileDigest> {
  const file = await openArrowFileWriter(path);
  try {
    for await (const batch of batches) await file.write(batch);
    return await file.commit();
  } finally {
    await file.abort();
  }
}
