import { createHash } from 'node:crypto';
import { Worker } from 'node:worker_threads';

/** sha256 of bytes as they come. Little is hashed here; what is long, on a thread of its own. */
export interface StreamHash {
  /** The bytes may be changed once the promise settles. */
  update(bytes: Uint8Array): Promise<void>;
  /** Lower-case hexadecimal. Once, at the end. */
  digest(): Promise<string>;
  /** Instead of `digest`, when nobody wants to know any more. */
  abandon(): void;
}

/** Up to here a thread would cost more than it saves. */
const SHORT_BYTES = 2 << 20;
/** So much may be on its way to the thread; whoever writes faster waits. */
const LARGEST_BACKLOG_BYTES = 8 << 20;

// Plain JavaScript in a string: it runs without a loader for TypeScript.
const PROGRAM = `
const { parentPort } = require('node:worker_threads');
const { createHash } = require('node:crypto');
const hashes = new Map();
parentPort.on('message', ({ id, bytes, end }) => {
  if (bytes !== undefined) {
    const hash = hashes.get(id) ?? createHash('sha256');
    hashes.set(id, hash);
    hash.update(bytes);
    parentPort.postMessage({ id, hashedBytes: bytes.length });
    return;
  }
  if (end === 'digest') parentPort.postMessage({ id, sha256: hashes.get(id).digest('hex') });
  hashes.delete(id);
});`;

interface Message {
  readonly id: number;
  readonly hashedBytes?: number;
  readonly sha256?: string;
}

interface HashThread {
  /** Copies the bytes. */
  send(id: number, bytes: Uint8Array): Promise<void>;
  end(id: number): Promise<string>;
  drop(id: number): void;
}

let thread: HashThread | undefined;
let lastId = 0;

/** One for the process; it ends with it. */
function takeThread(): HashThread {
  thread ??= startThread();
  return thread;
}

function startThread(): HashThread {
  const worker = new Worker(PROGRAM, { eval: true, execArgv: [] });
  worker.unref();
  let backlogBytes = 0;
  let failure: Error | undefined;
  const waiting: (() => void)[] = [];
  const digests = new Map<
    number,
    { readonly resolve: (sha256: string) => void; readonly reject: (error: Error) => void }
  >();
  const settle = () => {
    if (digests.size === 0 && waiting.length === 0) worker.unref();
  };
  const wakeAll = () => {
    for (const wake of waiting.splice(0)) wake();
  };
  worker.on('message', ({ id, hashedBytes, sha256 }: Message) => {
    if (hashedBytes !== undefined) {
      backlogBytes -= hashedBytes;
      if (backlogBytes <= LARGEST_BACKLOG_BYTES) wakeAll();
    }
    if (sha256 !== undefined) {
      digests.get(id)?.resolve(sha256);
      digests.delete(id);
    }
    settle();
  });
  worker.on('error', (error) => {
    failure = error;
    thread = undefined;
    for (const { reject } of digests.values()) reject(error);
    digests.clear();
    wakeAll();
  });
  return {
    send: async (id, bytes) => {
      if (failure !== undefined) throw failure;
      // Not `slice`, which of a Buffer is a view.
      const copy = new Uint8Array(bytes);
      worker.postMessage({ id, bytes: copy }, [copy.buffer as ArrayBuffer]);
      backlogBytes += copy.length;
      if (backlogBytes <= LARGEST_BACKLOG_BYTES) return;
      // While somebody waits the thread keeps the process alive.
      worker.ref();
      await new Promise<void>((resolve) => waiting.push(resolve));
      if (failure !== undefined) throw failure;
    },
    end: (id) => {
      if (failure !== undefined) return Promise.reject(failure);
      worker.ref();
      return new Promise((resolve, reject) => {
        digests.set(id, { resolve, reject });
        worker.postMessage({ id, end: 'digest' });
      });
    },
    drop: (id) => worker.postMessage({ id, end: 'drop' }),
  };
}

export function openStreamHash(): StreamHash {
  const here = createHash('sha256');
  // What came so far, until it is known to be long: a hash cannot move to another thread.
  let pieces: Uint8Array[] = [];
  let heldBytes = 0;
  let id: number | undefined;
  return {
    update: async (bytes) => {
      if (id === undefined && heldBytes + bytes.length <= SHORT_BYTES) {
        pieces.push(new Uint8Array(bytes));
        heldBytes += bytes.length;
        return;
      }
      const long = takeThread();
      if (id === undefined) {
        lastId += 1;
        id = lastId;
        for (const piece of pieces) await long.send(id, piece);
        pieces = [];
      }
      await long.send(id, bytes);
    },
    digest: async () => {
      if (id !== undefined) return takeThread().end(id);
      for (const piece of pieces) here.update(piece);
      return here.digest('hex');
    },
    abandon: () => {
      if (id !== undefined) takeThread().drop(id);
      pieces = [];
    },
  };
}
