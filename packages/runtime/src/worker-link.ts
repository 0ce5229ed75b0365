import { Worker } from 'node:worker_threads';
import { StillhouseError } from '@stillhouse/errors';
import {
  type FromWorker,
  SHARED_STATE,
  type ToWorker,
  type WorkerAnswers,
  type WorkerCommand,
  type WorkerRequest,
} from './protocol.ts';

/** The main thread's end of the connection to one worker. */
export interface WorkerLink {
  /** Executed in order; a failure is told by the next {@link request}. */
  send(command: WorkerCommand, transfer?: readonly ArrayBuffer[]): void;
  request<Kind extends WorkerRequest['kind']>(
    request: Extract<WorkerRequest, { kind: Kind }>,
    transfer?: readonly ArrayBuffer[],
  ): Promise<WorkerAnswers[Kind]>;
  /**
   * Ends the thread after the operation that it is in, for which it blocks; what else is under way fails with
   * RUNTIME_WORKER_LOST.
   */
  terminate(): Promise<void>;
}

interface Pending {
  readonly kind: string;
  readonly resolve: (answer: never) => void;
  readonly reject: (error: Error) => void;
}

/** The longest that the end of the process waits for an operation inside ONNX Runtime. */
const LONGEST_WAIT_MS = 30_000;
const openStates = new Set<Int32Array>();

function leaveNative(state: Int32Array): void {
  Atomics.store(state, SHARED_STATE.stop, 1);
  Atomics.wait(state, SHARED_STATE.busy, 1, LONGEST_WAIT_MS);
}

/** `process.exit` ends all threads, and one that is inside ONNX Runtime then aborts the process. */
function leaveNativeEverywhere(): void {
  openStates.forEach(leaveNative);
}

/** Starts a worker thread. It keeps the process alive only while a request is under way. */
export function startWorker(): WorkerLink {
  // execArgv: the entry registers what it needs itself, whatever the main thread was started with.
  const state = new Int32Array(new SharedArrayBuffer(SHARED_STATE.length * Int32Array.BYTES_PER_ELEMENT));
  const worker = new Worker(new URL('./worker-entry.js', import.meta.url), {
    execArgv: [],
    workerData: state,
    name: 'stillhouse-runtime',
  });
  worker.unref();
  if (openStates.size === 0) process.on('exit', leaveNativeEverywhere);
  openStates.add(state);
  const pending = new Map<number, Pending>();
  let nextId = 1;
  let ending = false;
  let lost: StillhouseError | undefined;

  const settle = (id: number): Pending | undefined => {
    const entry = pending.get(id);
    pending.delete(id);
    if (pending.size === 0 && !ending) worker.unref();
    return entry;
  };

  worker.on('message', (message: FromWorker) => {
    const entry = settle(message.id);
    if ('answer' in message) entry?.resolve(message.answer as never);
    else entry?.reject(new StillhouseError(message.failure));
  });

  const lose = (problem: string, cause?: unknown) => {
    lost ??= new StillhouseError({
      code: 'RUNTIME_WORKER_LOST',
      where: 'runtime',
      problem,
      remedy: 'Open a new engine; the tensors of this one are gone',
      cause,
    });
    for (const id of [...pending.keys()]) {
      const entry = settle(id);
      entry?.reject(
        new StillhouseError({ ...lost.report, where: `runtime, during ${entry.kind}`, cause: lost.report.cause }),
      );
    }
  };
  worker.on('error', (error) => lose(`the worker thread crashed: ${error.message}`, error));
  worker.on('exit', (exitCode) => {
    openStates.delete(state);
    if (openStates.size === 0) process.off('exit', leaveNativeEverywhere);
    lose(`the worker thread ended with exit code ${exitCode}`);
  });

  return {
    send(command, transfer = []) {
      if (lost !== undefined) throw lost;
      worker.postMessage({ id: null, command } satisfies ToWorker, transfer);
    },
    request(request, transfer = []) {
      return new Promise((resolve, reject) => {
        if (lost !== undefined) return reject(lost);
        const id = nextId++;
        worker.postMessage({ id, request } satisfies ToWorker, transfer);
        pending.set(id, { kind: request.kind, resolve, reject });
        worker.ref();
      });
    },
    async terminate() {
      leaveNative(state);
      ending = true;
      worker.ref(); // Whoever awaits the end must not find the process gone before it.
      await worker.terminate();
    },
  };
}
