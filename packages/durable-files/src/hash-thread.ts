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
/** Bytes go to the thread through so many buffers of this size, which both sides share; when all are taken one waits. */
const SLOT_BYTES = 1 << 20;
const SLOTS = 8;

// Plain JavaScript in a string: it runs without a loader for TypeScript.
const PROGRAM = `
const { parentPort, workerData: slots } = require('node:worker_threads');
const { createHash } = require('node:crypto');
const hashes = new Map();
parentPort.on('message', ({ id, slot, length, end }) => {
  if (slot !== undefined) {
    const hash = hashes.get(id) ?? createHash('sha256');
    hashes.set(id, hash);
    hash.update(slots[slot].subarray(0, length));
    parentPort.postMessage({ id, slot });
    return;
  }
  if (end === 'digest') parentPort.postMessage({ id, sha256: hashes.get(id).digest('hex') });
  hashes.delete(id);
});`;

interface Message {
  readonly id: number;
  /** Free again. */
  readonly slot?: number;
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

interface Waiter<T> {
  readonly resolve: (value: T) => void;
  readonly reject: (error: Error) => void;
}

function startThread(): HashThread {
  const slots = Array.from({ length: SLOTS }, () => new Uint8Array(new SharedArrayBuffer(SLOT_BYTES)));
  const worker = new Worker(PROGRAM, { eval: true, execArgv: [], workerData: slots });
  const free = [...slots.keys()];
  const wanting: Waiter<number>[] = [];
  const digests = new Map<number, Waiter<string>>();
  let failure: Error | undefined;
  // While somebody waits the thread keeps the process alive, and not longer.
  const hold = () => {
    if (wanting.length + digests.size > 0) worker.ref();
    else worker.unref();
  };
  hold();
  worker.on('message', ({ id, slot, sha256 }: Message) => {
    if (slot !== undefined) {
      const next = wanting.shift();
      if (next === undefined) free.push(slot);
      else next.resolve(slot);
    }
    if (sha256 !== undefined) {
      digests.get(id)?.resolve(sha256);
      digests.delete(id);
    }
    hold();
  });
  worker.on('error', (error) => {
    failure = error;
    thread = undefined;
    for (const { reject } of [...digests.values(), ...wanting]) reject(error);
    digests.clear();
    wanting.length = 0;
  });
  const takeSlot = (): Promise<number> => {
    if (failure !== undefined) return Promise.reject(failure);
    const slot = free.pop();
    if (slot !== undefined) return Promise.resolve(slot);
    return new Promise((resolve, reject) => {
      wanting.push({ resolve, reject });
      hold();
    });
  };
  return {
    send: async (id, bytes) => {
      for (let at = 0; at < bytes.length; at += SLOT_BYTES) {
        const piece = bytes.subarray(at, at + SLOT_BYTES);
        const slot = await takeSlot();
        slots[slot]!.set(piece);
        worker.postMessage({ id, slot, length: piece.length });
      }
    },
    end: (id) => {
      if (failure !== undefined) return Promise.reject(failure);
      return new Promise((resolve, reject) => {
        digests.set(id, { resolve, reject });
        hold();
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
