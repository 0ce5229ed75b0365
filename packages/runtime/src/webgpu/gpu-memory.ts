import { InferenceSession, Tensor } from 'onnxruntime-node';
import { Failure } from '../failure.ts';
import { type OwnModelName, readOwnModel } from '../own-models.ts';
import { countElements, formatShape, TENSOR_ARRAYS, type TensorData, type TensorDtype } from '../tensor.ts';
import type { EnterNative, TensorMemory } from '../tensor-memory.ts';

/** Bytes of the words that the runtime's own models move. */
const WORD_BYTES = 4;

/** A tensor that owns its memory: a buffer of the device, or a value that no run has needed a buffer for yet. */
interface Owner {
  readonly kind: 'owner';
  readonly dtype: TensorDtype;
  readonly shape: readonly number[];
  readonly count: number;
  content: Content;
}

type Content =
  | {
      readonly kind: 'buffer';
      readonly buffer: Tensor;
      /** The session of the program that made it, which must not end before it; absent for the runtime's own. */
      readonly madeBy?: InferenceSession;
    }
  | { readonly kind: 'constant'; readonly value: number };

interface View {
  readonly kind: 'view';
  readonly dtype: TensorDtype;
  readonly shape: readonly number[];
  readonly count: number;
  readonly owner: Owner;
  /** In elements of the owner. */
  readonly offset: number;
}

export interface GpuMemoryOptions {
  readonly enterNative: EnterNative;
  /** Options of a session whose outputs come back in main memory; with `preferredOutputLocation` they stay on the device. */
  readonly sessionOptions: InferenceSession.SessionOptions;
}

/**
 * Tensors in buffers of a WebGPU device. The binding hands a buffer out only as the result of a run, it has no offsets
 * into buffers, and WebGPU lets no dispatch read and write one buffer. So a run always writes new buffers, and the tensor
 * takes the new one in place of its old one, which ONNX Runtime uses again: what is in place for the main thread costs a
 * buffer of the output's size while the program runs. A view of a whole tensor is the same buffer; a view of a part is
 * cut out when it is read and joined in when it is written, which costs a copy of what it is part of.
 */
export function createGpuMemory({ enterNative, sessionOptions }: GpuMemoryOptions): TensorMemory<InferenceSession> {
  const tensors = new Map<number, Owner | View>();
  const sessions = new Map<string, InferenceSession>();
  /** Buffers that live, by the session that made them, and sessions that are to end with the last of theirs. */
  const living = new Map<InferenceSession, number>();
  const ending = new Set<InferenceSession>();

  function get(handle: number): Owner | View {
    const tensor = tensors.get(handle);
    if (tensor === undefined) throw new Error(`no tensor has the handle ${handle}`);
    return tensor;
  }

  async function runOwn(name: OwnModelName, feeds: Record<string, Tensor>, to: 'gpu-buffer' | 'cpu'): Promise<Tensor> {
    const key = `${name} to ${to}`;
    return enterNative(async () => {
      let session = sessions.get(key);
      if (session === undefined) {
        const options = to === 'cpu' ? sessionOptions : { ...sessionOptions, preferredOutputLocation: to };
        session = await InferenceSession.create(readOwnModel(name), options);
        sessions.set(key, session);
      }
      const results = await session.run(feeds);
      return Object.values(results)[0] as Tensor;
    });
  }

  const toDevice = (data: TensorData) =>
    runOwn('words-copy', { x: new Tensor('int32', wordsOf(data), [countWords(data.byteLength)]) }, 'gpu-buffer');

  async function makeConstant(dtype: TensorDtype, count: number, value: number): Promise<Tensor> {
    const one = new TENSOR_ARRAYS[dtype](Math.max(1, WORD_BYTES / TENSOR_ARRAYS[dtype].BYTES_PER_ELEMENT));
    fillArray(dtype, one, value);
    const [word, ...others] = wordsOf(one);
    if (others.some((other) => other !== word)) {
      const data = new TENSOR_ARRAYS[dtype](count);
      fillArray(dtype, data, value);
      return toDevice(data);
    }
    const words = countWords(count * TENSOR_ARRAYS[dtype].BYTES_PER_ELEMENT);
    const feeds = { word: new Tensor('int32', Int32Array.of(word!), [1]), count: shapeTensor([words]) };
    return runOwn('words-fill', feeds, 'gpu-buffer');
  }

  async function bufferOf(owner: Owner): Promise<Tensor> {
    if (owner.content.kind === 'constant') {
      owner.content = { kind: 'buffer', buffer: await makeConstant(owner.dtype, owner.count, owner.content.value) };
    }
    return owner.content.buffer;
  }

  async function setContent(owner: Owner, content: Content): Promise<void> {
    const { content: old } = owner;
    owner.content = content;
    if (content.kind === 'buffer' && content.madeBy !== undefined) {
      living.set(content.madeBy, (living.get(content.madeBy) ?? 0) + 1);
    }
    if (old.kind !== 'buffer') return;
    old.buffer.dispose();
    if (old.madeBy === undefined) return;
    const left = living.get(old.madeBy)! - 1;
    if (left > 0) {
      living.set(old.madeBy, left);
      return;
    }
    living.delete(old.madeBy);
    if (ending.delete(old.madeBy)) await old.madeBy.release();
  }

  /** From and to in words, of the owner. A part that cuts a word in two cannot be moved. */
  function wordRange({ dtype, offset, count, shape }: View): readonly [number, number] {
    const bytes = TENSOR_ARRAYS[dtype].BYTES_PER_ELEMENT;
    const [from, to] = [(offset * bytes) / WORD_BYTES, ((offset + count) * bytes) / WORD_BYTES];
    if (Number.isInteger(from) && Number.isInteger(to)) return [from, to];
    throw new Failure({
      code: 'TENSOR_VIEW_UNALIGNED',
      where: `view ${formatShape(shape)} from ${offset} of a ${dtype} tensor`,
      problem: 'it begins or ends inside a 32-bit word, which the device webgpu cannot address',
      remedy: `Cut at multiples of ${WORD_BYTES} bytes`,
    });
  }

  /** A new buffer with words of the owner. They are fetched in rows as long as the three numbers allow. */
  async function slice(owner: Owner, from: number, to: number): Promise<Tensor> {
    const all = countOwnerWords(owner);
    const width = [to, all].reduce(greatestCommonDivisor, from);
    const x = retype(await bufferOf(owner), 'int32', [all / width, width]);
    const rows = shapeTensor(Array.from({ length: (to - from) / width }, (_, row) => from / width + row));
    return runOwn('words-gather', { x, rows }, 'gpu-buffer');
  }

  /** The tensor as an operand, and whether its buffer ends with the run. */
  async function read(tensor: Owner | View): Promise<{ readonly operand: Tensor; readonly isOwn: boolean }> {
    if (tensor.count === 0) return { operand: emptyTensor(tensor.dtype, tensor.shape), isOwn: false };
    if (tensor.kind === 'owner')
      return { operand: retype(await bufferOf(tensor), tensor.dtype, tensor.shape), isOwn: false };
    const { owner, dtype, shape } = tensor;
    // A buffer that is longer than its tensor does no harm to who reads it.
    if (tensor.offset === 0) return { operand: retype(await bufferOf(owner), dtype, shape), isOwn: false };
    return { operand: retype(await slice(owner, ...wordRange(tensor)), dtype, shape), isOwn: true };
  }

  /** Takes over `buffer` as the tensor's content. */
  async function store(tensor: Owner | View, buffer: Tensor, madeBy?: InferenceSession): Promise<void> {
    const content: Content = { kind: 'buffer', buffer, ...(madeBy === undefined ? {} : { madeBy }) };
    if (tensor.kind === 'owner') return setContent(tensor, content);
    const { owner, count } = tensor;
    if (count === owner.count) return setContent(owner, content);
    const [from, to] = wordRange(tensor);
    const end = countOwnerWords(owner);
    const middle = retype(buffer, 'int32', [to - from]);
    const before = from === 0 ? [] : [await slice(owner, 0, from)];
    const after = to === end ? [] : [await slice(owner, to, end)];
    const [a, b, c] = [...before, middle, ...after];
    const asRow = (part: Tensor) => retype(part, 'int32', [part.size]);
    const joined =
      c === undefined
        ? await runOwn('words-join-2', { a: asRow(a!), b: asRow(b!) }, 'gpu-buffer')
        : await runOwn('words-join-3', { a: asRow(a!), b: asRow(b!), c: asRow(c) }, 'gpu-buffer');
    await setContent(owner, { kind: 'buffer', buffer: joined });
    for (const part of [buffer, ...before, ...after]) part.dispose();
  }

  return {
    async upload(handle, dtype, shape, data) {
      const count = countElements(shape);
      const content: Content =
        count === 0 ? { kind: 'constant', value: 0 } : { kind: 'buffer', buffer: await toDevice(data) };
      tensors.set(handle, { kind: 'owner', dtype, shape, count, content });
    },
    async allocate(handle, dtype, shape) {
      const content = { kind: 'constant', value: 0 } as const;
      tensors.set(handle, { kind: 'owner', dtype, shape, count: countElements(shape), content });
    },
    async view(handle, of, offset, shape) {
      const tensor = get(of);
      const [owner, start] = tensor.kind === 'owner' ? [tensor, 0] : [tensor.owner, tensor.offset];
      const { dtype } = tensor;
      tensors.set(handle, { kind: 'view', dtype, shape, count: countElements(shape), owner, offset: start + offset });
    },
    async write(handle, data) {
      const tensor = get(handle);
      if (tensor.count > 0) await store(tensor, await toDevice(data));
    },
    async fill(handle, value) {
      const tensor = get(handle);
      const owner = tensor.kind === 'owner' ? tensor : tensor.owner;
      if (tensor.count === owner.count) await setContent(owner, { kind: 'constant', value });
      else if (tensor.count > 0) await store(tensor, await makeConstant(tensor.dtype, tensor.count, value));
    },
    async copy(from, to) {
      const [source, target] = [get(from), get(to)];
      if (source.count === 0) return;
      const { operand, isOwn } = await read(source);
      const words = countWords(source.count * TENSOR_ARRAYS[source.dtype].BYTES_PER_ELEMENT);
      const copied = isOwn
        ? operand
        : await runOwn('words-copy', { x: retype(operand, 'int32', [words]) }, 'gpu-buffer');
      await store(target, copied);
    },
    async free(handles) {
      for (const handle of handles) {
        const tensor = tensors.get(handle);
        tensors.delete(handle);
        if (tensor?.kind === 'owner') await setContent(tensor, { kind: 'constant', value: 0 });
      }
    },
    async download(handle) {
      const { dtype, count, ...tensor } = get(handle);
      const data = new TENSOR_ARRAYS[dtype](count);
      if (count === 0) return data;
      const { operand, isOwn } = await read({ ...tensor, dtype, count } as Owner | View);
      const x = retype(operand, 'int32', [countWords(data.byteLength)]);
      const words = (await runOwn('words-copy', { x }, 'cpu')).data as Int32Array;
      new Uint8Array(data.buffer).set(new Uint8Array(words.buffer, words.byteOffset, data.byteLength));
      if (isOwn) operand.dispose();
      return data;
    },
    async run({ session, inputs, outputs, shapes }) {
      const feeds: Record<string, Tensor> = {};
      const own: Tensor[] = [];
      for (const [name, handle] of inputs) {
        const { operand, isOwn } = await read(get(handle));
        feeds[name] = operand;
        if (isOwn) own.push(operand);
      }
      for (const [name, sizes] of shapes) feeds[name] = shapeTensor(sizes);
      const results = await enterNative(() => session.run(feeds));
      for (const tensor of own) tensor.dispose();
      for (const [name, handle] of outputs) {
        const target = get(handle);
        const result = results[name] as Tensor;
        if (target.count === 0) result.dispose();
        else await store(target, result, session);
      }
    },
    async release(session) {
      if (living.has(session)) ending.add(session);
      else await session.release();
    },
    collect() {},
    async close() {
      for (const tensor of tensors.values())
        if (tensor.kind === 'owner') await setContent(tensor, { kind: 'constant', value: 0 });
      tensors.clear();
      for (const session of sessions.values()) await session.release();
      sessions.clear();
    },
  };
}

/** The same buffer read as another type or shape. It ends with the tensor it was taken from. */
function retype(buffer: Tensor, dtype: TensorDtype, shape: readonly number[]): Tensor {
  const tensor = Tensor.fromGpuBuffer(buffer.gpuBuffer, {
    dataType: dtype as Tensor.GpuBufferDataTypes,
    dims: [...shape],
    dispose: () => buffer.dispose(),
  });
  return tensor as Tensor;
}

function emptyTensor(dtype: TensorDtype, shape: readonly number[]): Tensor {
  return new Tensor(dtype, new TENSOR_ARRAYS[dtype](0) as Float32Array, [...shape]) as Tensor;
}

function fillArray(dtype: TensorDtype, data: TensorData, value: number): void {
  if (dtype === 'int64') (data as BigInt64Array).fill(BigInt(value));
  else (data as Float32Array).fill(value);
}

const countOwnerWords = ({ count, dtype }: Owner) => countWords(count * TENSOR_ARRAYS[dtype].BYTES_PER_ELEMENT);

function greatestCommonDivisor(a: number, b: number): number {
  return b === 0 ? a : greatestCommonDivisor(b, a % b);
}

const countWords = (sizeBytes: number) => Math.ceil(sizeBytes / WORD_BYTES);

/** The bytes of an array as whole words, the last one filled up with zeros; copied only where it must be. */
function wordsOf(data: TensorData): Int32Array {
  if (data.byteLength % WORD_BYTES === 0 && data.byteOffset % WORD_BYTES === 0)
    return new Int32Array(data.buffer, data.byteOffset, data.byteLength / WORD_BYTES);
  const words = new Int32Array(countWords(data.byteLength));
  new Uint8Array(words.buffer).set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  return words;
}

/** The sizes of a shape as the int64 tensor that operators want. */
function shapeTensor(sizes: readonly number[]): Tensor {
  return new Tensor('int64', BigInt64Array.from(sizes, BigInt), [sizes.length]) as Tensor;
}
