import type { WorkerFailure } from './protocol.ts';

/** A failure in the worker that already knows how to tell itself. */
export class Failure extends Error {
  readonly failure: WorkerFailure;
  constructor(failure: WorkerFailure) {
    super(failure.problem);
    this.failure = failure;
  }
}
