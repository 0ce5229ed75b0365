import { availableParallelism } from 'node:os';
import { Worker } from 'node:worker_threads';
import { StillhouseError } from '@stillhouse/errors';

/** The bytes of one file, hashed on another thread in the order of the calls. */
export interface ThreadFile {
  /** Hashes bytes of shared memory, which must stay as they are until this settles. */
  hash(bytes: Uint8Array): Promise<void>;
  /**
   * Hashes what an open file holds from `position` on.
   * @param fd stays open until this settles
   * @returns how many of `length` bytes there were
   */
  read(fd: number, length: number, position: number): Promise<number>;
  /** sha256 of all that was hashed, in lower-case hexadecimal. */
  digest(): Promise<string>;
  /** Instead of `digest`, when nobody wants to know any more. */
  abandon(): void;
}

/** A thread reads so much at a time into memory of its own. */
const PIECE_BYTES = 1 << 20;

/** Two keep a disk and a consumer busy: sha256 is the slowest part of a file's way, 0.4 to 1.5 GB/s on a core. */
const THREADS = Math.min(2, availableParallelism());

// Plain JavaScript in a string: it runs without a loader for TypeScript.
const PROGRAM = `
const { parentPort, workerData } = require('node:worker_threads');
const { createHash } = require('node:crypto');
const { readSync } = require('node:fs');
const hashes = new Map();
const own = Buffer.allocUnsafeSlow(workerData.pieceBytes);
const hashOf = (file) => {
  if (!hashes.has(file)) hashes.set(file, createHash('sha256'));
  return hashes.get(file);
};
const tasks = {
  hash: ({ file, bytes }) => {
    hashOf(file).update(bytes);
  },
  read: ({ file, fd, length, position }) => {
    let done = 0;
    while (done < length) {
      const count = readSync(fd, own, 0, Math.min(own.length, length - done), position + done);
      if (count === 0) break;
      hashOf(file).update(own.subarray(0, count));
      done += count;
    }
    return done;
  },
  digest: ({ file }) => {
    const sha256 = hashOf(file).digest('hex');
    hashes.delete(file);
    return sha256;
  },
  drop: ({ file }) => {
    hashes.delete(file);
  },
};
parentPort.on('message', (request) => {
  const { call, task } = request;
  try {
    parentPort.postMessage({ call, value: tasks[task](request) });
  } catch ({ message, code, errno, syscall }) {
    parentPort.postMessage({ call, failure: { message, code, errno, syscall } });
  }
});`;

interface Answer {
  readonly call: number;
  readonly value?: unknown;
  /** Of a system call; an error itself would lose its code on the way. */
  readonly failure?: { readonly message: string; readonly code?: string };
}

interface FileThread {
  /** So many files are on it now. */
  fileCount: number;
  /** So many bytes went through it. */
  totalBytes: number;
  ask(request: Record<string, unknown>): Promise<unknown>;
}

const threads: FileThread[] = [];
let lastFile = 0;

/** One of a few for the process, which end with it: the one that has least to do, and had so far. */
function takeThread(): FileThread {
  if (threads.length < THREADS) {
    const thread = startThread();
    threads.push(thread);
    return thread;
  }
  const hasLess = (a: FileThread, b: FileThread) =>
    a.fileCount < b.fileCount || (a.fileCount === b.fileCount && a.totalBytes < b.totalBytes);
  return threads.reduce((least, one) => (hasLess(one, least) ? one : least));
}

function startThread(): FileThread {
  const worker = new Worker(PROGRAM, { eval: true, execArgv: [], workerData: { pieceBytes: PIECE_BYTES } });
  const calls = new Map<number, { resolve(value: unknown): void; reject(error: Error): void }>();
  let lastCall = 0;
  let end: StillhouseError | undefined;
  let fault: Error | undefined;
  worker.unref();
  worker.on('message', ({ call, value, failure }: Answer) => {
    const { resolve, reject } = calls.get(call)!;
    calls.delete(call);
    if (calls.size === 0) worker.unref();
    if (failure === undefined) resolve(value);
    else reject(Object.assign(new Error(failure.message), failure));
  });
  worker.on('error', (error) => {
    fault = error;
  });
  // Only now: until it has ended it may still write.
  worker.on('exit', () => {
    end = new StillhouseError({
      code: 'FILE_THREAD_ENDED',
      where: 'writing and hashing files',
      problem: `the thread that does it has ended${fault === undefined ? '' : ` (${fault.message})`}`,
      remedy: 'Run the same command again; files that were not finished are not there',
      cause: fault,
    });
    threads.splice(threads.indexOf(thread), 1);
    for (const { reject } of calls.values()) reject(end);
    calls.clear();
  });
  const thread: FileThread = {
    fileCount: 0,
    totalBytes: 0,
    ask: (request) => {
      if (end !== undefined) return Promise.reject(end);
      return new Promise((resolve, reject) => {
        // While somebody waits the thread keeps the process alive, and not longer.
        if (calls.size === 0) worker.ref();
        lastCall += 1;
        calls.set(lastCall, { resolve, reject });
        worker.postMessage({ ...request, call: lastCall });
      });
    },
  };
  return thread;
}

/**
 * @throws StillhouseError FILE_THREAD_ENDED (from any of the calls); what it has hashed is lost with a thread
 */
export function openThreadFile(): ThreadFile {
  const thread = takeThread();
  thread.fileCount += 1;
  lastFile += 1;
  const file = lastFile;
  let isDone = false;
  const finish = () => {
    if (!isDone) thread.fileCount -= 1;
    isDone = true;
  };
  return {
    hash: async (bytes) => {
      thread.totalBytes += bytes.length;
      await thread.ask({ task: 'hash', file, bytes });
    },
    read: async (fd, length, position) => {
      thread.totalBytes += length;
      return (await thread.ask({ task: 'read', file, fd, length, position })) as number;
    },
    digest: async () => {
      const sha256 = (await thread.ask({ task: 'digest', file })) as string;
      finish();
      return sha256;
    },
    abandon: () => {
      finish();
      thread.ask({ task: 'drop', file }).catch(() => {});
    },
  };
}
