/**
 * The thread that owns the ONNX Runtime sessions and all tensor memory. It executes messages strictly in order.
 *
 * Memory lives here as ordinary ArrayBuffers: the binding refuses SharedArrayBuffers, and `session.run` blocks its
 * thread, so the main thread keeps only handles.
 */
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { parentPort, workerData } from 'node:worker_threads';
import { env, InferenceSession, Tensor } from 'onnxruntime-node';
import { PROBE_MODEL } from './probe-model.ts';
import { describeUnsupportedDtype } from './program.ts';
import type {
  FromWorker,
  Port,
  ToWorker,
  WorkerAnswers,
  WorkerCall,
  WorkerCommand,
  WorkerFailure,
  WorkerOptions,
  WorkerRequest,
} from './protocol.ts';
import { SHARED_STATE } from './protocol.ts';
import { createSessionOptions } from './session-options.ts';
import { countElements, TENSOR_ARRAYS, type TensorData, type TensorDtype } from './tensor.ts';

if (parentPort === null) throw new Error('worker.ts runs in a worker thread only');
const port = parentPort;
const state = workerData as Int32Array;

interface HeldTensor {
  readonly dtype: TensorDtype;
  readonly data: TensorData;
  readonly tensor: Tensor;
}

interface LoadedProgram {
  readonly name: string;
  readonly session: InferenceSession;
}

/** A failure that already knows how to tell itself. */
class Failure extends Error {
  readonly failure: WorkerFailure;
  constructor(failure: WorkerFailure) {
    super(failure.problem);
    this.failure = failure;
  }
}

const tensors = new Map<number, HeldTensor>();
const programs = new Map<number, LoadedProgram>();
let options: WorkerOptions | undefined;
let commandFailure: WorkerFailure | undefined;

/** V8 does not hurry to collect a few large arrays, so memory is taken back once this much has been freed. */
const COLLECT_AFTER_BYTES = 256 * 2 ** 20;
let freedBytes = 0;
setFlagsFromString('--expose-gc');
const collectGarbage = runInNewContext('gc') as (options?: { type: 'minor' }) => void;

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

function holdTensor(handle: number, dtype: TensorDtype, shape: readonly number[], data: TensorData): void {
  const tensor = new Tensor(dtype, data as Float32Array, [...shape]) as Tensor;
  tensors.set(handle, { dtype, data, tensor });
}

function getTensor(handle: number): HeldTensor {
  const held = tensors.get(handle);
  if (held === undefined) throw new Error(`no tensor has the handle ${handle}`);
  return held;
}

function fillTensor(handle: number, value: number): void {
  const { dtype, data } = getTensor(handle);
  if (dtype === 'int64') (data as BigInt64Array).fill(BigInt(value));
  else (data as Float32Array).fill(value);
}

function copyTensor(from: number, to: number): void {
  (getTensor(to).data as Float32Array).set(getTensor(from).data as Float32Array);
}

function releaseMemory(handles: readonly number[], sizeBytes: number): void {
  for (const handle of handles) tensors.delete(handle);
  countFreed(sizeBytes);
}

function countFreed(sizeBytes: number): void {
  freedBytes += sizeBytes;
  if (freedBytes >= COLLECT_AFTER_BYTES) takeMemoryBack();
}

function takeMemoryBack(): void {
  if (freedBytes === 0) return;
  collectGarbage();
  // V8 frees array memory in the background after a collection; the next collection waits for that.
  collectGarbage({ type: 'minor' });
  freedBytes = 0;
}

function allocateArray(dtype: TensorDtype, shape: readonly number[]): TensorData {
  const create = () => new TENSOR_ARRAYS[dtype](countElements(shape));
  try {
    return create();
  } catch {
    takeMemoryBack();
    return create();
  }
}

async function executeCommand(command: WorkerCommand): Promise<void> {
  switch (command.kind) {
    case 'upload':
      return holdTensor(command.handle, command.dtype, command.shape, command.data);
    case 'allocate':
      return holdTensor(command.handle, command.dtype, command.shape, allocateArray(command.dtype, command.shape));
    case 'view': {
      const { dtype, data } = getTensor(command.of);
      const part = data.subarray(command.offset, command.offset + countElements(command.shape));
      return holdTensor(command.handle, dtype, command.shape, part);
    }
    case 'write':
      (getTensor(command.tensor).data as Float32Array).set(command.data as Float32Array);
      return countFreed(command.data.byteLength);
    case 'fill':
      return fillTensor(command.tensor, command.value);
    case 'copy':
      return copyTensor(command.from, command.to);
    case 'free':
      return releaseMemory(command.handles, command.sizeBytes);
    case 'release': {
      const program = programs.get(command.program);
      programs.delete(command.program);
      return program?.session.release();
    }
    default:
      throw new Error(`unknown command ${JSON.stringify(command satisfies never)}`);
  }
}

async function executeCall(call: WorkerCall, position: string): Promise<void> {
  if (call.kind === 'fill') return fillTensor(call.tensor, call.value);
  if (call.kind === 'copy') return copyTensor(call.from, call.to);
  const program = programs.get(call.program);
  if (program === undefined) throw new Error(`no program has the number ${call.program}`);
  const { name, session } = program;
  const bind = (names: readonly string[], handles: readonly number[]) =>
    Object.fromEntries(names.map((port, index) => [port, getTensor(handles[index]!).tensor]));
  try {
    const inputs = bind(session.inputNames, call.inputs);
    const outputs = bind(session.outputNames, call.outputs);
    await enterNative(() => session.run(inputs, outputs));
  } catch (error) {
    if (error instanceof Failure) throw error;
    throw new Failure({
      code: 'RUNTIME_FAILED',
      where: `program ${name} (${position})`,
      problem: `ONNX Runtime failed: ${describe(error)}`,
    });
  }
}

async function openDevice(wanted: WorkerOptions): Promise<null> {
  options = wanted;
  env.logLevel = 'fatal'; // Everything that fails is thrown; ONNX Runtime need not print it as well.
  if (wanted.device !== 'cpu') {
    // Without this the session would be made, and run, on the CPU.
    const strict = createSessionOptions(wanted, { 'session.disable_cpu_ep_fallback': '1' });
    try {
      await enterNative(async () => {
        const session = await InferenceSession.create(PROBE_MODEL, strict);
        const three = () => new Tensor('float32', new Float32Array([3]), [1, 1]);
        const { c } = await session.run({ a: three(), b: three() });
        if (c?.data[0] !== 9) throw new Error(`3 times 3 came out as ${c?.data[0]}`);
        await session.release();
      });
    } catch (error) {
      throw new Failure({
        code: 'DEVICE_UNAVAILABLE',
        where: `device ${wanted.device}`,
        problem: `ONNX Runtime cannot use it here: ${describe(error)}`,
      });
    }
  }
  return null;
}

async function compileProgram(request: Extract<WorkerRequest, { kind: 'compile' }>): Promise<WorkerAnswers['compile']> {
  const { name, model } = request;
  if (options === undefined) throw new Error('compile before open');
  let session: InferenceSession;
  try {
    const settings = createSessionOptions({
      ...options,
      enableMemoryArena: request.enableMemoryArena ?? options.enableMemoryArena,
      threads: request.threads ?? options.threads,
    });
    session = await enterNative(() => InferenceSession.create(model, settings));
  } catch (error) {
    if (error instanceof Failure) throw error;
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
  programs.set(request.program, { name, session });
  return {
    inputs: session.inputMetadata.map(describePort),
    outputs: session.outputMetadata.map(describePort),
  };
}

function describePort(metadata: InferenceSession.ValueMetadata): Port {
  return metadata.isTensor
    ? { name: metadata.name, dtype: metadata.type, shape: metadata.shape }
    : { name: metadata.name, dtype: 'not a tensor', shape: [] };
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
      return request.tensors.map((handle) => getTensor(handle).data.slice());
    case 'memory':
      takeMemoryBack();
      return { residentBytes: process.memoryUsage.rss(), peakRssBytes: process.resourceUsage().maxRSS * 1024 };
    case 'close':
      for (const { session } of programs.values()) {
        if (options?.profileFolder !== undefined) session.endProfiling();
        await session.release();
      }
      programs.clear();
      tensors.clear();
      collectGarbage();
      return null;
    default:
      throw new Error(`unknown request ${JSON.stringify(request satisfies never)}`);
  }
}

function describe(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).trim();
}

function toFailure(error: unknown, kind: string): WorkerFailure {
  if (error instanceof Failure) return error.failure;
  const outOfMemory = error instanceof RangeError && /alloc|array buffer|invalid.*length/i.test(error.message);
  return {
    code: outOfMemory ? 'OUT_OF_MEMORY' : 'RUNTIME_FAILED',
    where: `command ${kind}`,
    problem: describe(error),
    ...(outOfMemory ? { remedy: 'Free tensors, or work in smaller batches' } : {}),
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
