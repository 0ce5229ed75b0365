import { isStillhouseError, StillhouseError } from '@stillhouse/errors';
import { encodeModel, type GraphBuilder, type ProductPrecision, racesOnThreads } from '@stillhouse/onnx-graph';
import { countElements, formatShape, TENSOR_ARRAYS, type TensorData, type TensorDtype } from '@stillhouse/tensor-types';
import type { Call } from './call.ts';
import { lowerCall, lowerCopy, lowerFill } from './call-lowering.ts';
import { checkPorts, describeProgram, type Program } from './program.ts';
import { checkTensorData, type DeviceTensor, measureTensor } from './tensor.ts';
import { createTensorTable, type TensorTable } from './tensor-table.ts';
import type { WorkerLink } from './worker-link.ts';

export interface ModelOptions {
  readonly name: string;
  /** Threads inside an operator. Default: the engine's. */
  readonly threads?: number;
  /** Whether nodes that compute the same are made one. Default true. */
  readonly mergesRepeats?: boolean;
}

export interface MemoryUse {
  /** Bytes of the tensors that are allocated and not freed; views count nothing. */
  readonly allocatedBytes: number;
  /** Resident memory of the process now, with its own code and ONNX Runtime's working memory. */
  readonly residentBytes: number;
  /** The highest resident memory of the process so far. */
  readonly peakRssBytes: number;
  /** Of a CUDA device: memory that is taken, by whomever, and all that it has. Not told of others. */
  readonly device: { readonly usedBytes: number; readonly totalBytes: number } | undefined;
}

/**
 * Runs ONNX programs on tensors that stay with the device, in a thread of its own.
 *
 * Everything is executed in the order in which it was asked for, so nothing but results needs to be awaited. Wrong
 * arguments fail at the call. A failure of a command without a promise (memory exhausted in `allocate`) is told by
 * the next call with a promise, which is then not executed.
 *
 * Every method can fail with ENGINE_CLOSED, RUNTIME_WORKER_LOST and, where it takes tensors, TENSOR_FREED.
 */
export interface Engine {
  readonly device: 'cpu' | 'cuda' | 'webgpu';
  /** Why this device, in words for a log. */
  readonly deviceReason: string;
  readonly precision: ProductPrecision;
  /**
   * Makes a program of a graph, under its own name and in the form that the device and the precision want: with one
   * thread where more would race, which only graphs that do little have, and as it stands where it computes something
   * again.
   * @throws those of `encodeModel` and `compileModel`
   */
  compile(graph: GraphBuilder): Promise<Program>;
  /**
   * Makes a program of a serialised ONNX model (copied).
   * @throws PROGRAM_INVALID with ONNX Runtime's words, PROGRAM_DTYPE_UNSUPPORTED
   */
  compileModel(model: Uint8Array, options: ModelOptions): Promise<Program>;
  /**
   * A tensor with this data, copied; with `transfer` the whole ArrayBuffer under `data` is handed over uncopied and
   * can no longer be used here. (Shared memory is always copied.)
   * @throws TENSOR_DATA_MISMATCH, TENSOR_DTYPE_UNSUPPORTED, TENSOR_SHAPE_INVALID
   */
  upload(
    data: TensorData,
    dtype: TensorDtype,
    shape: readonly number[],
    options?: { readonly transfer?: boolean },
  ): DeviceTensor;
  /** A tensor of zeros. */
  allocate(dtype: TensorDtype, shape: readonly number[]): DeviceTensor;
  /**
   * A tensor that aliases `countElements(shape)` elements of `tensor` from `offset` (in elements) on.
   * It ends with the tensor it was taken from.
   * @throws TENSOR_VIEW_OUT_OF_RANGE
   */
  view(tensor: DeviceTensor, part: { readonly offset: number; readonly shape: readonly number[] }): DeviceTensor;
  /** Overwrites a tensor with `data` (copied). @throws TENSOR_DATA_MISMATCH */
  write(tensor: DeviceTensor, data: TensorData): void;
  /** Copies all elements; dtypes and element counts must agree, shapes need not. @throws TENSOR_COPY_MISMATCH */
  copy(from: DeviceTensor, to: DeviceTensor): void;
  /** Sets every element; float16 takes its bit pattern, int64 a whole number. */
  fill(tensor: DeviceTensor, value: number): void;
  /**
   * Runs a sequence with one message to the device. All calls are checked before the first one runs. Outputs are
   * written into the given tensors. An output that aliases an input (in place) is right only where data flow makes
   * the write come after every read of that input: element-wise operators, Gemm with C as output, ScatterND. (On the
   * device webgpu it is right always, and takes a buffer of the output's size while the program runs.)
   * @throws PROGRAM_* (see checkBindings), PROGRAM_RELEASED, RUNTIME_FAILED with ONNX Runtime's words
   */
  run(calls: readonly Call[]): Promise<void>;
  /** A copy of the tensor's elements. */
  download(tensor: DeviceTensor): Promise<TensorData>;
  /** Copies of several tensors, in one message. */
  downloadMany(tensors: readonly DeviceTensor[]): Promise<readonly TensorData[]>;
  /** Ends a tensor and all views of it; the memory returns when it is no view itself. */
  free(tensor: DeviceTensor): void;
  memory(): Promise<MemoryUse>;
  /** Ends the engine after what was asked before. May be called again. */
  close(): Promise<void>;
}

/** What an engine keeps on the main thread. */
interface EngineState extends Pick<Engine, 'device' | 'precision'> {
  readonly link: WorkerLink;
  readonly tensors: TensorTable;
  readonly programs: Map<Program, number>;
  closing: Promise<void> | undefined;
}

export function createEngine(
  link: WorkerLink,
  { device, deviceReason, precision }: Pick<Engine, 'device' | 'deviceReason' | 'precision'>,
): Engine {
  const programs = new Map<Program, number>();
  const state: EngineState = { device, precision, link, tensors: createTensorTable(), programs, closing: undefined };
  return {
    device,
    deviceReason,
    precision,
    ...programMethods(state),
    ...tensorMethods(state),
    ...dataMethods(state),
    async memory() {
      checkOpen(state, 'memory');
      const use = await link.request({ kind: 'memory' });
      return { allocatedBytes: state.tensors.allocatedBytes(), ...use };
    },
    close() {
      state.closing ??= link
        .request({ kind: 'close' })
        .catch((error) => {
          // A lost worker has nothing left to close, and whoever waited for it was told.
          if (!isStillhouseError(error, 'RUNTIME_WORKER_LOST')) throw error;
        })
        .then(() => link.terminate());
      return state.closing;
    },
  };
}

function checkOpen({ closing }: EngineState, command: string): void {
  if (closing === undefined) return;
  throw new StillhouseError({ code: 'ENGINE_CLOSED', where: `command ${command}`, problem: 'the engine is closed' });
}

function programMethods(state: EngineState): Pick<Engine, 'compile' | 'compileModel' | 'run'> {
  const { device, precision, link, programs } = state;
  let nextNumber = 1;

  async function compileModel(model: Uint8Array, { name, threads, mergesRepeats }: ModelOptions): Promise<Program> {
    checkOpen(state, 'compile');
    const number = nextNumber++;
    const copy = new Uint8Array(model); // Not slice(), with which a Buffer would alias.
    const ports = await link.request({ kind: 'compile', program: number, name, model: copy, threads, mergesRepeats }, [
      copy.buffer,
    ]);
    const program = describeProgram(name, ports, () => {
      if (state.closing !== undefined || !programs.delete(program)) return;
      link.send({ kind: 'release', program: number });
    });
    programs.set(program, number);
    try {
      checkPorts(name, [...ports.inputs, ...ports.outputs]);
    } catch (error) {
      program.release();
      throw error;
    }
    return program;
  }

  return {
    compileModel,
    async compile(graph) {
      return compileModel(encodeModel(graph, device === 'cpu' ? 'any' : device, precision), {
        name: graph.name,
        ...(racesOnThreads(graph) ? { threads: 1 } : {}),
        ...(graph.hints.computesAgain ? { mergesRepeats: false } : {}),
      });
    },
    async run(calls) {
      checkOpen(state, 'run');
      const lowered = calls.map((call, index) => lowerCall(state, call, `call ${index + 1} of ${calls.length}`));
      await link.request({ kind: 'run', calls: lowered });
    },
  };
}

/** Tensors come and go. */
function tensorMethods(state: EngineState): Pick<Engine, 'upload' | 'allocate' | 'view' | 'free'> {
  const { link, tensors } = state;
  return {
    upload(data, dtype, shape, { transfer = false } = {}) {
      checkOpen(state, 'upload');
      const where = `upload of ${dtype} ${formatShape(shape)}`;
      const sizeBytes = measureTensor(where, dtype, shape);
      checkTensorData(where, data, dtype, shape);
      const moved = transfer && data.buffer instanceof ArrayBuffer ? data : copyData(data, dtype);
      const tensor = tensors.hold(dtype, shape, sizeBytes);
      const { handle } = tensor;
      try {
        link.send({ kind: 'upload', handle, dtype, shape: tensor.shape, data: moved }, [moved.buffer as ArrayBuffer]);
      } catch (error) {
        tensors.end(handle);
        throw error;
      }
      return tensor;
    },
    allocate(dtype, shape) {
      checkOpen(state, 'allocate');
      const sizeBytes = measureTensor(`allocation of ${dtype} ${formatShape(shape)}`, dtype, shape);
      const tensor = tensors.hold(dtype, shape, sizeBytes);
      link.send({ kind: 'allocate', handle: tensor.handle, dtype, shape: tensor.shape });
      return tensor;
    },
    view(tensor, { offset, shape }) {
      checkOpen(state, 'view');
      const where = `view ${formatShape(shape)} from ${offset} of ${tensor.dtype} ${formatShape(tensor.shape)}`;
      const of = tensors.use(where, tensor);
      const sizeBytes = measureTensor(where, tensor.dtype, shape);
      checkInside(where, tensor, offset, offset + countElements(shape));
      const view = tensors.hold(tensor.dtype, shape, sizeBytes, tensor);
      link.send({ kind: 'view', handle: view.handle, of, offset, shape: view.shape });
      return view;
    },
    free(tensor) {
      checkOpen(state, 'free');
      link.send({ kind: 'free', ...tensors.end(tensors.use('free', tensor)) });
    },
  };
}

/** What tensors hold. */
function dataMethods(state: EngineState): Pick<Engine, 'write' | 'copy' | 'fill' | 'download' | 'downloadMany'> {
  const { link, tensors } = state;
  const downloadMany = async (wanted: readonly DeviceTensor[]) => {
    checkOpen(state, 'download');
    return link.request({ kind: 'download', tensors: wanted.map((tensor) => tensors.use('download', tensor)) });
  };
  return {
    downloadMany,
    download: async (tensor) => (await downloadMany([tensor]))[0]!,
    write(tensor, data) {
      checkOpen(state, 'write');
      const where = `write to ${tensor.dtype} ${formatShape(tensor.shape)}`;
      const handle = tensors.use(where, tensor);
      checkTensorData(where, data, tensor.dtype, tensor.shape);
      const moved = copyData(data, tensor.dtype);
      link.send({ kind: 'write', tensor: handle, data: moved }, [moved.buffer as ArrayBuffer]);
    },
    copy(from, to) {
      checkOpen(state, 'copy');
      link.send(lowerCopy(tensors, 'copy', from, to));
    },
    fill(tensor, value) {
      checkOpen(state, 'fill');
      link.send(lowerFill(tensors, 'fill', tensor, value));
    },
  };
}

/** Whether the elements from `offset` to `end` lie in a tensor. @throws TENSOR_VIEW_OUT_OF_RANGE */
function checkInside(where: string, tensor: DeviceTensor, offset: number, end: number): void {
  if (Number.isSafeInteger(offset) && offset >= 0 && end <= countElements(tensor.shape)) return;
  throw new StillhouseError({
    code: 'TENSOR_VIEW_OUT_OF_RANGE',
    where,
    problem: 'the view reaches outside the tensor',
    expected: `elements 0 to ${countElements(tensor.shape)}`,
    got: `${offset} to ${end}`,
  });
}

function copyData(data: TensorData, dtype: TensorDtype): TensorData {
  // Not slice(): a Buffer's slice aliases, and a shared array would stay shared.
  const copy = new TENSOR_ARRAYS[dtype](data.length);
  (copy as Float32Array).set(data as Float32Array);
  return copy;
}
