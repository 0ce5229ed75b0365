/**
 * The thread that owns the ONNX Runtime sessions and all tensor memory. It executes messages strictly in order.
 *
 * `session.run` blocks its thread, so the main thread keeps only handles, and `TensorMemory` the tensors.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { isShapeInput, type TensorData } from '@stillhouse/tensor-types';
import { Failure } from './failure.ts';
import { openCpuBackend } from './native/cpu-backend.ts';
import { openCudaBackend } from './native/cuda-backend.ts';
import { describeUnsupportedDtype } from './program.ts';
import type {
  FromWorker,
  ToWorker,
  WorkerAnswers,
  WorkerCall,
  WorkerCommand,
  WorkerFailure,
  WorkerOptions,
  WorkerRequest,
} from './protocol.ts';
import { SHARED_STATE } from './protocol.ts';
import type { Backend, LoadedModel } from './tensor-memory.ts';

if (parentPort === null) throw new Error('worker.ts runs in a worker thread only');
const port = parentPort;
const state = workerData as Int32Array;

interface LoadedProgram {
  readonly name: string;
  readonly session: unknown;
  /** The inputs that are tensors, and those that are shapes. */
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  readonly shapeNames: readonly string[];
}

/** What to do when memory is exhausted. */
const SMALLER = 'Free tensors, or work in smaller batches';
/** ONNX Runtime's, CUDA's and Dawn's words for a device that has no memory left, or none in one piece. */
const DEVICE_MEMORY_EXHAUSTED =
  /exceeds the max buffer size limit|out[ _]of[ _]memory|failed to (create GPU buffer|allocate memory)|available memory of \d+ is smaller/i;

const programs = new Map<number, LoadedProgram>();
let options: WorkerOptions | undefined;
let opened: Backend<unknown> | undefined;
let commandFailure: WorkerFailure | undefined;

function backend(): Backend<unknown> {
  if (opened === undefined) throw new Error('no device was opened');
  return opened;
}

/** Every stay inside ONNX Runtime: a thread that is ended there takes the whole process with it (SIGABRT). */
async function enterNative<Result>(work: () => Promise<Result>): Promise<Result> {
  Atomics.store(state, SHARED_STATE.busy, 1);
  try {
    if (Atomics.load(state, SHARED_STATE.stop) === 1) {
      throw new Failure({ code: 'RUNTIME_WORKER_LOST', where: 'runtime', problem: 'the engine was ended' });
    }
    return await work();
  } finally {
    Atomics.store(state, SHARED_STATE.busy, 0);
    Atomics.notify(state, SHARED_STATE.busy);
  }
}

async function executeCommand(command: WorkerCommand): Promise<void> {
  switch (command.kind) {
    case 'upload':
      return backend().memory.upload(command.handle, command.dtype, command.shape, command.data);
    case 'allocate':
      return backend().memory.allocate(command.handle, command.dtype, command.shape);
    case 'view':
      return backend().memory.view(command.handle, command.of, command.offset, command.shape);
    case 'write':
      return backend().memory.write(command.tensor, command.data);
    case 'fill':
      return backend().memory.fill(command.tensor, command.value);
    case 'copy':
      return backend().memory.copy(command.from, command.to);
    case 'free':
      return backend().memory.free(command.handles, command.sizeBytes);
    case 'release': {
      const program = programs.get(command.program);
      programs.delete(command.program);
      return program === undefined ? undefined : backend().memory.release(program.session);
    }
    default:
      throw new Error(`unknown command ${JSON.stringify(command satisfies never)}`);
  }
}

async function executeCall(call: WorkerCall, position: string): Promise<void> {
  if (call.kind === 'fill') return backend().memory.fill(call.tensor, call.value);
  if (call.kind === 'copy') return backend().memory.copy(call.from, call.to);
  const program = programs.get(call.program);
  if (program === undefined) throw new Error(`no program has the number ${call.program}`);
  const { name, session, inputNames, outputNames, shapeNames } = program;
  const bind = <Bound>(names: readonly string[], bound: readonly Bound[]) =>
    names.map((port, index) => [port, bound[index]!] as const);
  try {
    await backend().memory.run({
      session,
      inputs: bind(inputNames, call.inputs),
      outputs: bind(outputNames, call.outputs),
      shapes: bind(shapeNames, call.shapes),
    });
  } catch (error) {
    if (error instanceof Failure) throw error;
    const where = `program ${name} (${position})`;
    const problem = `ONNX Runtime failed: ${describe(error)}`;
    if (DEVICE_MEMORY_EXHAUSTED.test(problem))
      throw new Failure({ code: 'OUT_OF_MEMORY', where, problem, remedy: SMALLER });
    throw new Failure({ code: 'RUNTIME_FAILED', where, problem });
  }
}

async function openBackend(wanted: WorkerOptions): Promise<Backend<unknown>> {
  if (wanted.device === 'cpu') return openCpuBackend(enterNative);
  if (wanted.device === 'cuda') return openCudaBackend(enterNative, wanted);
  // What nothing else needs is not loaded for it.
  const { openWebGpuBackend } = await import('./webgpu/backend.ts');
  return openWebGpuBackend(enterNative, wanted);
}

async function openDevice(wanted: WorkerOptions): Promise<null> {
  try {
    opened = await openBackend(wanted);
  } catch (error) {
    throw new Failure({
      code: 'DEVICE_UNAVAILABLE',
      where: `device ${wanted.device}`,
      problem: `ONNX Runtime cannot use it here: ${describe(error)}`,
    });
  }
  options = wanted;
  return null;
}

async function compileProgram(request: Extract<WorkerRequest, { kind: 'compile' }>): Promise<WorkerAnswers['compile']> {
  const { name, model } = request;
  if (options === undefined) throw new Error('compile before open');
  let loaded: LoadedModel<unknown>;
  try {
    loaded = await backend().load(model, {
      ...options,
      threads: request.threads ?? options.threads,
      mergesRepeats: request.mergesRepeats,
    });
  } catch (error) {
    if (error instanceof Failure) throw error;
    if (/fallback to CPU EP has been explicitly disabled/.test(describe(error))) {
      throw new Failure({
        code: 'PROGRAM_UNSUPPORTED_BY_DEVICE',
        where: `program ${name}`,
        problem:
          `ONNX Runtime would compute some of its operators on the CPU, as ${options.device} has no kernels for ` +
          'them',
        remedy: 'Choose the device cpu',
      });
    }
    if (/^Unsupported data type/.test(describe(error))) {
      // The binding's words for an input or output of, say, bfloat16.
      throw new Failure(describeUnsupportedDtype(`program ${name}`, describe(error)));
    }
    throw new Failure({
      code: 'PROGRAM_INVALID',
      where: `program ${name}`,
      problem: `ONNX Runtime does not accept the model: ${describe(error)}`,
    });
  }
  const { session, inputs, outputs } = loaded;
  const names = inputs.map((port) => port.name);
  programs.set(request.program, {
    name,
    session,
    inputNames: names.filter((port) => !isShapeInput(port)),
    outputNames: outputs.map((output) => output.name),
    shapeNames: names.filter(isShapeInput),
  });
  return { inputs, outputs };
}

async function answerRequest(request: WorkerRequest): Promise<WorkerAnswers[keyof WorkerAnswers]> {
  switch (request.kind) {
    case 'open':
      return openDevice(request.options);
    case 'compile':
      return compileProgram(request);
    case 'run': {
      const count = request.calls.length;
      for (const [index, call] of request.calls.entries()) await executeCall(call, `call ${index + 1} of ${count}`);
      return null;
    }
    case 'download':
      return downloadMany(request.tensors);
    case 'memory': {
      const device = backend().memory.measureDevice?.();
      backend().memory.collect();
      return {
        residentBytes: process.memoryUsage.rss(),
        peakRssBytes: process.resourceUsage().maxRSS * 1024,
        device,
      };
    }
    case 'close':
      // Tensors first: on a device, memory that outlives the session that made it ends the process when it is freed.
      await backend().memory.close();
      for (const { session } of programs.values()) {
        if (options?.profileFolder !== undefined) backend().endProfiling(session);
        await backend().memory.release(session);
      }
      programs.clear();
      return null;
    default:
      throw new Error(`unknown request ${JSON.stringify(request satisfies never)}`);
  }
}

async function downloadMany(handles: readonly number[]): Promise<readonly TensorData[]> {
  const downloaded: TensorData[] = [];
  for (const handle of handles) downloaded.push(await backend().memory.download(handle));
  return downloaded;
}

function describe(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).trim();
}

function toFailure(error: unknown, kind: string): WorkerFailure {
  if (error instanceof Failure) return error.failure;
  const outOfMemory =
    (error instanceof RangeError && /alloc|array buffer|invalid.*length/i.test(error.message)) ||
    DEVICE_MEMORY_EXHAUSTED.test(describe(error));
  return {
    code: outOfMemory ? 'OUT_OF_MEMORY' : 'RUNTIME_FAILED',
    where: `command ${kind}`,
    problem: describe(error),
    ...(outOfMemory ? { remedy: SMALLER } : {}),
  };
}

async function execute(message: ToWorker): Promise<void> {
  if (message.id === null) {
    try {
      // After a failed command the next ones may build on what is not there: only the first failure counts.
      if (commandFailure === undefined || message.command.kind === 'free') await executeCommand(message.command);
    } catch (error) {
      commandFailure ??= toFailure(error, message.command.kind);
    }
    return;
  }
  const { id, request } = message;
  let reply: FromWorker;
  if (commandFailure !== undefined && request.kind !== 'close') {
    reply = { id, failure: commandFailure };
    commandFailure = undefined;
  } else {
    try {
      reply = { id, answer: await answerRequest(request) };
    } catch (error) {
      reply = { id, failure: toFailure(error, request.kind) };
    }
  }
  const moved =
    request.kind === 'download' && 'answer' in reply
      ? (reply.answer as WorkerAnswers['download']).map((data) => data.buffer as ArrayBuffer)
      : [];
  port.postMessage(reply, moved);
  if (request.kind === 'close') port.close();
}

const queue: ToWorker[] = [];
let busy = false;

async function drain(): Promise<void> {
  busy = true;
  for (let message = queue.shift(); message !== undefined; message = queue.shift()) await execute(message);
  busy = false;
}

port.on('message', (message: ToWorker) => {
  queue.push(message);
  if (!busy) void drain();
});
