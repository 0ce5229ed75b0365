import { Worker } from 'node:worker_threads';
import { StillhouseError } from '@stillhouse/errors';
import type { FromWorker, ToWorker, WorkerAnswers, WorkerCommand, WorkerRequest } from './protocol.ts';

/** The main thread's end of the connection to one worker. */
export interface WorkerLink {
  /** Executed in order; a failure is told by the next {@link request}. */
  send(command: WorkerCommand, transfer?: readonly ArrayBuffer[]): void;
  request<Kind extends WorkerRequest['kind']>(
    request: Extract<WorkerRequest, { kind: Kind }>,
    transfer?: readonly ArrayBuffer[],
  ): Promise<WorkerAnswers[Kind]>;
  /** Ends the thread at once; what is under way fails with RUNTIME_WORKER_LOST. */
  terminate(): Promise<void>;
}

interface Pending {
  readonly kind: string;
  readonly resolve: (answer: never) => void;
  readonly reject: (error: Error) => void;
}

/** Starts a worker thread. It keeps the process alive only while a request is under way. */
export function startWorker(): WorkerLink {
  // execArgv: the entry registers what it needs itself, whatever the main thread was started with.
  const worker = new Worker(new URL('./worker-entry.js', import.meta.url), {
    execArgv: [],
    name: 'stillhouse-runtime',
  });
  worker.unref();
  const pending = new Map<number, Pending>();
  let nextId = 1;
  let lost: StillhouseError | undefined;

  const settle = (id: number): Pending | undefined => {
    const entry = pending.get(id);
    pending.delete(id);
    if (pending.size === 0) worker.unref();
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
  worker.on('exit', (exitCode) => lose(`the worker thread ended with exit code ${exitCode}`));

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
      await worker.terminate();
    },
  };
}
