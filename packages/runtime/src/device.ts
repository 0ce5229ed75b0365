import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { isStillhouseError, StillhouseError } from '@stillhouse/errors';
import { createEngine, type Engine } from './engine.ts';
import { findGraphics, type GraphicsFinding } from './graphics.ts';
import { startWorker } from './worker-link.ts';

export type DeviceName = 'auto' | 'cpu' | 'cuda' | 'webgpu';

/** A device that is not the CPU. */
export type Accelerator = 'cuda' | 'webgpu';

export interface EngineOptions {
  /**
   * Default `auto`: the first of `candidates` that is here and works, else the CPU. A device that is named is used or
   * refused, never replaced.
   */
  readonly device?: DeviceName;
  /** Devices that `auto` may choose besides the CPU, best first: those that the programs to come are fit for. Default none. */
  readonly candidates?: readonly Accelerator[];
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

/** Where the installation script of onnxruntime-node puts it, from the package's main file. */
const CUDA_PROVIDER = `../bin/napi-v6/${process.platform}/${process.arch}/libonnxruntime_providers_cuda.so`;

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
  if (wanted === 'auto') return chooseDevice(options, threads, findAccelerator);
  return openDevice(wanted, options, threads, `${wanted}, as asked${describeMemory(wanted)}`);
}

/** Whether an accelerator seems to be here, before it is tried. */
type Finding = (device: Accelerator) => GraphicsFinding;

/**
 * Opens the first candidate that is found and works, or the CPU.
 * @param find where accelerators are looked for
 */
export async function chooseDevice(options: EngineOptions, threads: number, find: Finding): Promise<Engine> {
  const { candidates = [] } = options;
  const passedOver: string[] = [];
  for (const device of candidates) {
    const { isPresent, reason } = find(device);
    if (!isPresent) {
      passedOver.push(`not ${device}: ${reason}`);
      continue;
    }
    try {
      return await openDevice(device, options, threads, `${device}, chosen: ${reason}${describeMemory(device)}`);
    } catch (error) {
      if (!isStillhouseError(error, 'DEVICE_UNAVAILABLE')) throw error;
      passedOver.push(`not ${device}: ${reason}, but ${error.report.problem}`);
    }
  }
  const why =
    candidates.length === 0 ? 'this work runs on no other device unless it is asked for' : passedOver.join('; ');
  return openDevice('cpu', options, threads, `cpu, chosen: ${why}`);
}

function findAccelerator(device: Accelerator): GraphicsFinding {
  if (device === 'webgpu') return findGraphics();
  const provider = join(dirname(createRequire(import.meta.url).resolve('onnxruntime-node')), CUDA_PROVIDER);
  return existsSync(provider)
    ? { isPresent: true, reason: "ONNX Runtime's CUDA provider is installed" }
    : { isPresent: false, reason: "ONNX Runtime's CUDA provider is not installed" };
}

function describeMemory(device: Engine['device']): string {
  if (device === 'cpu') return '';
  if (device === 'cuda') return '; tensors stay in main memory, so each run copies its inputs and outputs';
  const { isPresent, reason } = findGraphics();
  return `; tensors stay in its buffers${isPresent ? '' : `; ${reason}: if it works, then in software, and slowly`}`;
}

async function openDevice(
  device: Engine['device'],
  { enableMemoryArena = true, profileFolder }: EngineOptions,
  threads: number,
  reason: string,
): Promise<Engine> {
  const link = startWorker();
  try {
    await link.request({ kind: 'open', options: { device, threads, enableMemoryArena, profileFolder } });
  } catch (error) {
    await link.terminate();
    if (!isStillhouseError(error, 'DEVICE_UNAVAILABLE')) throw error;
    throw new StillhouseError({ ...error.report, remedy: REMEDIES[device], cause: error });
  }
  return createEngine(link, device, reason);
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
