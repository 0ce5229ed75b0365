import type { TransferPolicy } from '../transfer/transfer-policy.ts';

/** Bytes of a file in a remote, from some offset on. */
export interface RemoteBody {
  /** Where the bytes begin; 0 if the other side cannot start in the middle. */
  readonly offset: number;
  /** Size of the whole file, where the other side says it. */
  readonly totalBytes: number | undefined;
  readonly chunks: AsyncIterable<Uint8Array>;
}

/** A place that holds caches, by keys such as `refs/main.json`. Methods try once; callers try again. */
export interface RemoteReader {
  /** The place in messages, without credentials. */
  readonly where: string;
  /**
   * @returns undefined if there is no such file
   * @throws PassingFault where another try may help; StillhouseError REMOTE_ACCESS_DENIED, REMOTE_REFUSED, ...
   */
  read(key: string, offset: number, signal: AbortSignal): Promise<RemoteBody | undefined>;
  /** All keys below a folder; undefined where files cannot be listed. */
  list(folder: 'refs' | 'caches', signal: AbortSignal): Promise<readonly string[] | undefined>;
  close(): void;
}

export interface BlobToSend {
  readonly key: string;
  /** For messages: its path in the cache. */
  readonly name: string;
  readonly localPath: string;
  readonly sizeBytes: number;
  readonly sha256: string;
}

export interface SmallFile {
  readonly key: string;
  readonly content: Uint8Array;
}

export interface SendOptions {
  readonly policy: TransferPolicy;
  readonly signal: AbortSignal | undefined;
  /** A blob is there. */
  onSent(blob: BlobToSend): void;
  /** Bytes that were on their way; what a failed try moved is counted again. */
  onBytes(count: number): void;
}

/** A place that caches can be pushed to. These methods try again by themselves. */
export interface RemoteWriter extends RemoteReader {
  /** The sizes of blobs that are there; what is not there is left out. */
  sizes(blobs: readonly BlobToSend[], options: SendOptions): Promise<ReadonlyMap<string, number>>;
  /**
   * Brings blobs; none is seen under its key before it is whole.
   * @throws StillhouseError CACHE_FILE_DAMAGED if a file is not what its hash says
   */
  send(blobs: readonly BlobToSend[], options: SendOptions): Promise<void>;
  /** Puts small files in the order given, each whole or not at all, replacing what was there. */
  publish(files: readonly SmallFile[], message: string, options: SendOptions): Promise<void>;
}
