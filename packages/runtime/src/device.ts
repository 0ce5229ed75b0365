import { availableParallelism } from 'node:os';
import { isStillhouseError, StillhouseError } from '@stillhouse/errors';
import { createEngine, type Engine } from './engine.ts';
import { startWorker } from './worker-link.ts';

export type DeviceName = 'auto' | 'cpu' | 'cuda' | 'webgpu';

export interface EngineOptions {
  /** Default `auto`, which is the CPU in this version. A device that is named is used or refused, never replaced. */
  readonly device?: DeviceName;
  /** Threads inside an operator. Default: the cores that the process may use. */
  readonly threads?: number;
  /**
   * Whether each program keeps the memory of its intermediate values between runs: faster, but every program holds
   * its own peak for as long as it lives. Default true.
   */
  readonly enableMemoryArena?: boolean;
  /**
   * A folder into which ONNX Runtime writes, when the engine closes, the time that each operator of each program took: one
   * JSON file a program, in Chrome's trace format. Not set: no profile, and nothing is slowed down.
   */
  readonly profileFolder?: string;
}

const REMEDIES = {
  cpu: 'Reinstall onnxruntime-node',
  cuda:
    'On Linux x64 with CUDA 12 and cuDNN 9, run `node node_modules/onnxruntime-node/script/install.js ' +
    '--onnxruntime-node-install=cuda12`; otherwise choose the device cpu',
  webgpu: 'It needs a graphics driver with Vulkan, Metal or Direct3D 12; otherwise choose the device cpu',
} as const;

/**
 * Starts an engine in a thread of its own.
 * @throws ENGINE_OPTION_INVALID, DEVICE_UNAVAILABLE (with ONNX Runtime's own words)
 */
export async function openEngine(options: EngineOptions = {}): Promise<Engine> {
  const wanted = options.device ?? 'auto';
  const threads = options.threads ?? availableParallelism();
  if (!['auto', 'cpu', 'cuda', 'webgpu'].includes(wanted)) {
    refuseOption('device', 'auto, cpu, cuda or webgpu', String(wanted));
  }
  if (!Number.isInteger(threads) || threads < 1) refuseOption('threads', 'a whole number from 1 up', String(threads));
  const device = wanted === 'auto' ? 'cpu' : wanted;
  const link = startWorker();
  try {
    await link.request({
      kind: 'open',
      options: {
        device,
        threads,
        enableMemoryArena: options.enableMemoryArena ?? true,
        profileFolder: options.profileFolder,
      },
    });
  } catch (error) {
    await link.terminate();
    if (!isStillhouseError(error, 'DEVICE_UNAVAILABLE')) throw error;
    throw new StillhouseError({ ...error.report, remedy: REMEDIES[device], cause: error });
  }
  return createEngine(link, device, explainDevice(wanted));
}

function explainDevice(wanted: DeviceName): string {
  if (wanted === 'cpu') return 'cpu, as asked';
  if (wanted === 'auto') return 'cpu: this version keeps tensors in main memory, so `auto` uses no other device';
  if (wanted === 'webgpu') return 'webgpu, as asked: tensors stay in its buffers';
  return 'cuda, as asked: tensors stay in main memory, so each run copies its inputs and outputs';
}

function refuseOption(option: string, expected: string, got: string): never {
  throw new StillhouseError({
    code: 'ENGINE_OPTION_INVALID',
    where: `engine option ${option}`,
    problem: 'it has no such value',
    expected,
    got,
  });
}
