import { env, InferenceSession, Tensor } from 'onnxruntime-node';
import { readOwnModel } from '../own-models.ts';
import type { Port, WorkerOptions } from '../protocol.ts';
import type { Backend, EnterNative } from '../tensor-memory.ts';
import { createGpuMemory } from './gpu-memory.ts';
import { createWebGpuOptions } from './session-options.ts';

/** A WebGPU device, by onnxruntime-node. @throws Error with ONNX Runtime's words where there is none that works */
export async function openWebGpuBackend(
  enterNative: EnterNative,
  options: WorkerOptions,
): Promise<Backend<InferenceSession>> {
  env.logLevel = 'fatal'; // Everything that fails is thrown; ONNX Runtime need not print it as well.
  const sessionOptions = createWebGpuOptions({ ...options, profileFolder: undefined });
  await enterNative(async () => {
    const session = await InferenceSession.create(readOwnModel('matmul'), sessionOptions);
    const three = () => new Tensor('float32', new Float32Array([3]), [1, 1]);
    const { c } = await session.run({ a: three(), b: three() });
    if (c?.data[0] !== 9) throw new Error(`3 times 3 came out as ${c?.data[0]}`);
    await session.release();
  });
  return {
    memory: createGpuMemory({ enterNative, sessionOptions }),
    load: (model, given) => load(enterNative, model, given),
    endProfiling: (session) => session.endProfiling(),
  };
}

async function load(enterNative: EnterNative, model: Uint8Array, options: WorkerOptions) {
  const kept = { ...createWebGpuOptions(options), preferredOutputLocation: 'gpu-buffer' } as const;
  const session = await enterNative(() => InferenceSession.create(model, kept));
  return {
    session,
    inputs: session.inputMetadata.map(describePort),
    outputs: session.outputMetadata.map(describePort),
  };
}

function describePort(metadata: InferenceSession.ValueMetadata): Port {
  return metadata.isTensor
    ? { name: metadata.name, dtype: metadata.type, shape: metadata.shape }
    : { name: metadata.name, dtype: 'not a tensor', shape: [] };
}
