import { elementBytes, formatShape, TENSOR_ARRAYS, type TensorDtype } from '@stillhouse/tensor-types';
import { type InferenceSession, Tensor } from 'onnxruntime-node';
import { Failure } from '../failure.ts';
import { countWords, shapeTensor, WORD_BYTES, type WordModels } from './word-models.ts';

/** A tensor that owns its memory: a buffer of the device, or a value that no run has needed a buffer for yet. */
export interface Owner {
  readonly kind: 'owner';
  readonly dtype: TensorDtype;
  readonly shape: readonly number[];
  readonly count: number;
  content: Content;
}

export type Content =
  | {
      readonly kind: 'buffer';
      readonly buffer: Tensor;
      /** The session of the program that made it, which must not end before it; absent for the runtime's own. */
      readonly madeBy?: InferenceSession;
    }
  | { readonly kind: 'constant'; readonly value: number };

export interface View {
  readonly kind: 'view';
  readonly dtype: TensorDtype;
  readonly shape: readonly number[];
  readonly count: number;
  readonly owner: Owner;
  /** In elements of the owner. */
  readonly offset: number;
}

/** Which sessions have buffers alive. */
export interface BufferMakers {
  /** Gives a tensor another content; the old one ends. */
  setContent(owner: Owner, content: Content): Promise<void>;
  /** Ends a session with the last buffer that it made. */
  release(session: InferenceSession): Promise<void>;
}

export function createBufferMakers(): BufferMakers {
  /** Buffers that live, by the session that made them, and sessions that are to end with the last of theirs. */
  const living = new Map<InferenceSession, number>();
  const ending = new Set<InferenceSession>();
  return {
    async setContent(owner, content) {
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
    },
    async release(session) {
      if (living.has(session)) ending.add(session);
      else await session.release();
    },
  };
}

/** Reads and writes tensors, whole and in part. */
export interface GpuTensors {
  /** The tensor as an operand, and whether its buffer ends with the run. */
  read(tensor: Owner | View): Promise<{ readonly operand: Tensor; readonly isOwn: boolean }>;
  /** Takes over `buffer` as the tensor's content. */
  store(tensor: Owner | View, buffer: Tensor, madeBy?: InferenceSession): Promise<void>;
}

export function createGpuTensors(words: WordModels, { setContent }: BufferMakers): GpuTensors {
  async function bufferOf(owner: Owner): Promise<Tensor> {
    if (owner.content.kind === 'constant') {
      owner.content = { kind: 'buffer', buffer: await words.fill(owner.dtype, owner.count, owner.content.value) };
    }
    return owner.content.buffer;
  }

  /** A new buffer with words of the owner. They are fetched in rows as long as the three numbers allow. */
  async function slice(owner: Owner, from: number, to: number): Promise<Tensor> {
    const all = countOwnerWords(owner);
    const width = [to, all].reduce(greatestCommonDivisor, from);
    const x = retype(await bufferOf(owner), 'int32', [all / width, width]);
    const rows = shapeTensor(Array.from({ length: (to - from) / width }, (_, row) => from / width + row));
    return words.run('words-gather', { x, rows }, 'gpu-buffer');
  }

  /** The words of a part of its owner, in the place of the old ones. The owner gets a new buffer. */
  async function join(view: View, buffer: Tensor): Promise<void> {
    const { owner } = view;
    const [from, to] = wordRange(view);
    const end = countOwnerWords(owner);
    const middle = retype(buffer, 'int32', [to - from]);
    const before = from === 0 ? [] : [await slice(owner, 0, from)];
    const after = to === end ? [] : [await slice(owner, to, end)];
    const [a, b, c] = [...before, middle, ...after];
    const asRow = (part: Tensor) => retype(part, 'int32', [part.size]);
    const joined =
      c === undefined
        ? await words.run('words-join-2', { a: asRow(a!), b: asRow(b!) }, 'gpu-buffer')
        : await words.run('words-join-3', { a: asRow(a!), b: asRow(b!), c: asRow(c) }, 'gpu-buffer');
    await setContent(owner, { kind: 'buffer', buffer: joined });
    for (const part of [buffer, ...before, ...after]) part.dispose();
  }

  return {
    async read(tensor) {
      if (tensor.count === 0) return { operand: emptyTensor(tensor.dtype, tensor.shape), isOwn: false };
      if (tensor.kind === 'owner')
        return { operand: retype(await bufferOf(tensor), tensor.dtype, tensor.shape), isOwn: false };
      const { owner, dtype, shape } = tensor;
      // A buffer that is longer than its tensor does no harm to who reads it.
      if (tensor.offset === 0) return { operand: retype(await bufferOf(owner), dtype, shape), isOwn: false };
      return { operand: retype(await slice(owner, ...wordRange(tensor)), dtype, shape), isOwn: true };
    },
    async store(tensor, buffer, madeBy) {
      const content: Content = { kind: 'buffer', buffer, ...(madeBy === undefined ? {} : { madeBy }) };
      if (tensor.kind === 'owner') return setContent(tensor, content);
      if (tensor.count === tensor.owner.count) return setContent(tensor.owner, content);
      return join(tensor, buffer);
    },
  };
}

/** From and to in words, of the owner. A part that cuts a word in two cannot be moved. */
function wordRange({ dtype, offset, count, shape }: View): readonly [number, number] {
  const bytes = elementBytes(dtype);
  const [from, to] = [(offset * bytes) / WORD_BYTES, ((offset + count) * bytes) / WORD_BYTES];
  if (Number.isInteger(from) && Number.isInteger(to)) return [from, to];
  throw new Failure({
    code: 'TENSOR_VIEW_UNALIGNED',
    where: `view ${formatShape(shape)} from ${offset} of a ${dtype} tensor`,
    problem: 'it begins or ends inside a 32-bit word, which the device webgpu cannot address',
    remedy: `Cut at multiples of ${WORD_BYTES} bytes`,
  });
}

/** The same buffer read as another type or shape. It ends with the tensor it was taken from. */
export function retype(buffer: Tensor, dtype: TensorDtype, shape: readonly number[]): Tensor {
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

const countOwnerWords = ({ count, dtype }: Owner) => countWords(count * elementBytes(dtype));

function greatestCommonDivisor(a: number, b: number): number {
  return b === 0 ? a : greatestCommonDivisor(b, a % b);
}
