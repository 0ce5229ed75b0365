import { countElements, elementBytes, TENSOR_ARRAYS } from '@stillhouse/tensor-types';
import type { InferenceSession, Tensor } from 'onnxruntime-node';
import type { BoundRun, TensorMemory } from '../tensor-memory.ts';
import {
  type Content,
  createBufferMakers,
  createGpuTensors,
  type GpuTensors,
  type Owner,
  retype,
  type View,
} from './gpu-tensors.ts';
import { countWords, createWordModels, shapeTensor, type WordModelOptions, type WordModels } from './word-models.ts';

/** What a memory of buffers is made of. */
interface GpuMemory {
  readonly words: WordModels;
  readonly tensors: GpuTensors;
  /** The tensor of a handle. */
  readonly get: (handle: number) => Owner | View;
}

/** What a tensor without memory of its own holds. */
const NOTHING = { kind: 'constant', value: 0 } as const;

/**
 * Tensors in buffers of a WebGPU device. The binding hands a buffer out only as the result of a run, it has no offsets
 * into buffers, and WebGPU lets no dispatch read and write one buffer. So a run always writes new buffers, and the
 * tensor takes the new one in place of its old one, which ONNX Runtime uses again: what is in place for the main thread
 * costs a buffer of the output's size while the program runs. A view of a whole tensor is the same buffer; a view of a
 * part is cut out when it is read and joined in when it is written, which costs a copy of what it is part of.
 */
export function createGpuMemory(options: WordModelOptions): TensorMemory<InferenceSession> {
  const { enterNative } = options;
  const handles = new Map<number, Owner | View>();
  const words = createWordModels(options);
  const makers = createBufferMakers();
  const tensors = createGpuTensors(words, makers);
  const get = (handle: number): Owner | View => {
    const tensor = handles.get(handle);
    if (tensor === undefined) throw new Error(`no tensor has the handle ${handle}`);
    return tensor;
  };
  const memory: GpuMemory = { words, tensors, get };
  return {
    async upload(handle, dtype, shape, data) {
      const count = countElements(shape);
      const content: Content = count === 0 ? NOTHING : { kind: 'buffer', buffer: await words.toDevice(data) };
      handles.set(handle, { kind: 'owner', dtype, shape, count, content });
    },
    async allocate(handle, dtype, shape) {
      handles.set(handle, { kind: 'owner', dtype, shape, count: countElements(shape), content: NOTHING });
    },
    async view(handle, of, offset, shape) {
      const tensor = get(of);
      const [owner, start] = tensor.kind === 'owner' ? [tensor, 0] : [tensor.owner, tensor.offset];
      const { dtype } = tensor;
      handles.set(handle, { kind: 'view', dtype, shape, count: countElements(shape), owner, offset: start + offset });
    },
    async write(handle, data) {
      const tensor = get(handle);
      if (tensor.count > 0) await tensors.store(tensor, await words.toDevice(data));
    },
    async fill(handle, value) {
      const tensor = get(handle);
      const owner = tensor.kind === 'owner' ? tensor : tensor.owner;
      if (tensor.count === owner.count) await makers.setContent(owner, { kind: 'constant', value });
      else if (tensor.count > 0) await tensors.store(tensor, await words.fill(tensor.dtype, tensor.count, value));
    },
    copy: (from, to) => copy(memory, get(from), get(to)),
    async free(ended) {
      for (const handle of ended) {
        const tensor = handles.get(handle);
        handles.delete(handle);
        if (tensor?.kind === 'owner') await makers.setContent(tensor, NOTHING);
      }
    },
    download: (handle) => download(memory, get(handle)),
    run: (bound) => run(memory, (feeds) => enterNative(() => bound.session.run(feeds)), bound),
    release: (session) => makers.release(session),
    collect() {},
    async close() {
      for (const tensor of handles.values()) if (tensor.kind === 'owner') await makers.setContent(tensor, NOTHING);
      handles.clear();
      await words.close();
    },
  };
}

async function copy({ words, tensors }: GpuMemory, source: Owner | View, target: Owner | View): Promise<void> {
  if (source.count === 0) return;
  const { operand, isOwn } = await tensors.read(source);
  const size = countWords(source.count * elementBytes(source.dtype));
  const copied = isOwn ? operand : await words.run('words-copy', { x: retype(operand, 'int32', [size]) }, 'gpu-buffer');
  await tensors.store(target, copied);
}

async function download({ words, tensors }: GpuMemory, tensor: Owner | View) {
  const data = new TENSOR_ARRAYS[tensor.dtype](tensor.count);
  if (tensor.count === 0) return data;
  const { operand, isOwn } = await tensors.read(tensor);
  const x = retype(operand, 'int32', [countWords(data.byteLength)]);
  const read = (await words.run('words-copy', { x }, 'cpu')).data as Int32Array;
  new Uint8Array(data.buffer).set(new Uint8Array(read.buffer, read.byteOffset, data.byteLength));
  if (isOwn) operand.dispose();
  return data;
}

async function run(
  { tensors, get }: GpuMemory,
  compute: (feeds: Record<string, Tensor>) => Promise<InferenceSession.OnnxValueMapType>,
  { session, inputs, outputs, shapes }: BoundRun<InferenceSession>,
): Promise<void> {
  const feeds: Record<string, Tensor> = {};
  const own: Tensor[] = [];
  for (const [name, handle] of inputs) {
    const { operand, isOwn } = await tensors.read(get(handle));
    feeds[name] = operand;
    if (isOwn) own.push(operand);
  }
  for (const [name, sizes] of shapes) feeds[name] = shapeTensor(sizes);
  const results = await compute(feeds);
  for (const tensor of own) tensor.dispose();
  for (const [name, handle] of outputs) {
    const target = get(handle);
    const result = results[name] as Tensor;
    if (target.count === 0) result.dispose();
    else await tensors.store(target, result, session);
  }
}
