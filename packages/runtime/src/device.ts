import { availableParallelism } from 'node:os';
import { isStillhouseError, StillhouseError } from '@stillhouse/errors';
import type { ProductPrecision } from '@stillhouse/onnx-graph';
import { createEngine, type Engine } from './engine.ts';
import { findCudaProvider } from './native/onnxruntime-library.ts';
import { tryProducts } from './product-trial.ts';
import { findGraphics, type GraphicsFinding } from './webgpu/graphics.ts';
import { startWorker } from './worker-link.ts';

export type DeviceName = 'auto' | 'cpu' | 'cuda' | 'webgpu';

/** A device that is not the CPU. */
export type Accelerator = 'cuda' | 'webgpu';

export interface EngineOptions {
  /**
   * Default `auto`: the first of `candidates` that is here, works and multiplies faster than the CPU, else the CPU. A
   * device that is named is used or refused, never replaced.
   */
  readonly device?: DeviceName;
  /**
   * Devices that `auto` may choose besides the CPU, best first: those that the programs to come are fit for. Default
   * none.
   */
  readonly candidates?: readonly Accelerator[];
  /** Threads inside an operator. Default: the cores that the process may use. */
  readonly threads?: number;
  /** What products of float32 matrices round their operands to; only CUDA has another than `float32`, the default. */
  readonly precision?: ProductPrecision;
  /**
   * Whether each program keeps the memory of its intermediate values between runs: faster, but every program holds
   * its own peak for as long as it lives. Default true.
   */
  readonly enableMemoryArena?: boolean;
  /**
   * A folder into which ONNX Runtime writes, when the engine closes, the time that each operator of each program took:
   * one JSON file a program, in Chrome's trace format. Not set: no profile, and nothing is slowed down.
   */
  readonly profileFolder?: string;
}

const REMEDIES = {
  cpu: 'Reinstall onnxruntime-node',
  cuda:
    "It needs an NVIDIA driver, ONNX Runtime's CUDA provider and the CUDA libraries of that (docs/devices.md " +
    'says where ' +
    'they come from), on Linux x64; otherwise choose the device cpu',
  webgpu: 'It needs a graphics driver with Vulkan, Metal or Direct3D 12; otherwise choose the device cpu',
} as const;

/**
 * Starts an engine in a thread of its own.
 * @throws ENGINE_OPTION_INVALID, PRECISION_NOT_ON_DEVICE, DEVICE_UNAVAILABLE (with ONNX Runtime's own words)
 */
export async function openEngine(options: EngineOptions = {}): Promise<Engine> {
  const wanted = options.device ?? 'auto';
  const threads = options.threads ?? availableParallelism();
  if (!['auto', 'cpu', 'cuda', 'webgpu'].includes(wanted)) {
    refuseOption('device', 'auto, cpu, cuda or webgpu', String(wanted));
  }
  if (!['float32', 'tf32', 'bfloat16'].includes(options.precision ?? 'float32')) {
    refuseOption('precision', 'float32, tf32 or bfloat16', String(options.precision));
  }
  if (!Number.isInteger(threads) || threads < 1) refuseOption('threads', 'a whole number from 1 up', String(threads));
  if (wanted === 'auto') return chooseDevice(options, threads, findAccelerator);
  return openDevice(wanted, options, threads, `${wanted}, as asked`);
}

/** Whether an accelerator seems to be here, before it is tried. */
type Finding = (device: Accelerator) => GraphicsFinding;

/**
 * Opens the first candidate that is found, works and multiplies faster than the CPU, or the CPU.
 * @param find where accelerators are looked for
 * @param timeCpu how long the CPU takes for a product, in milliseconds
 */
export async function chooseDevice(
  options: EngineOptions,
  threads: number,
  find: Finding,
  timeCpu = timeCpuProduct,
): Promise<Engine> {
  const { precision = 'float32' } = options;
  const candidates = (options.candidates ?? []).filter((device) => precision === 'float32' || device === 'cuda');
  const passedOver: string[] = [];
  let cpuMs: Promise<number> | undefined;
  // Whoever asks for a precision asks for the device that has it.
  const measureCpu = () => (cpuMs ??= precision === 'float32' ? timeCpu(threads) : Promise.resolve(Infinity));
  for (const device of candidates) {
    const { isPresent, reason } = find(device);
    if (!isPresent) {
      passedOver.push(`not ${device}: ${reason}`);
      continue;
    }
    try {
      return await openFaster(device, { options, threads, reason: `${device}, chosen: ${reason}` }, measureCpu);
    } catch (error) {
      if (!isStillhouseError(error)) throw error;
      passedOver.push(`not ${device}: ${reason}, but ${error.report.problem}`);
    }
  }
  const why =
    candidates.length === 0 ? 'this work runs on no other device unless it is asked for' : passedOver.join('; ');
  return openDevice('cpu', options, threads, `cpu, chosen: ${why}`);
}

async function timeCpuProduct(threads: number): Promise<number> {
  const engine = await openDevice('cpu', {}, threads, 'cpu');
  try {
    return (await tryProducts(engine)).productMs;
  } finally {
    await engine.close();
  }
}

/** @throws DEVICE_UNAVAILABLE also where the device's products are wrong or no faster than the CPU's */
async function openFaster(
  device: Accelerator,
  { options, threads, reason }: { readonly options: EngineOptions; readonly threads: number; readonly reason: string },
  measureCpu: () => Promise<number>,
): Promise<Engine> {
  const engine = await openDevice(device, options, threads, reason);
  try {
    const { productMs, isRight } = await tryProducts(engine);
    if (!isRight) refuseDevice(device, 'its products of matrices are wrong');
    const cpuMs = await measureCpu();
    const times = `a product takes ${printMs(productMs)} there and ${printMs(cpuMs)} on the CPU`;
    if (productMs >= cpuMs) refuseDevice(device, times);
    return Number.isFinite(cpuMs) ? { ...engine, deviceReason: `${engine.deviceReason}; ${times}` } : engine;
  } catch (error) {
    await engine.close();
    throw error;
  }
}

const printMs = (ms: number) => `${ms < 10 ? ms.toPrecision(2) : ms.toFixed(0)} ms`;

function refuseDevice(device: Accelerator, problem: string): never {
  throw new StillhouseError({ code: 'DEVICE_UNAVAILABLE', where: `device ${device}`, problem });
}

function findAccelerator(device: Accelerator): GraphicsFinding {
  if (device === 'webgpu') return findGraphics();
  return findCudaProvider();
}

function describeMemory(device: Engine['device']): string {
  if (device === 'cpu') return '';
  if (device === 'cuda') return '; tensors stay in its memory';
  const { isPresent, reason } = findGraphics();
  return `; tensors stay in its buffers${isPresent ? '' : `; ${reason}: if it works, then in software, and slowly`}`;
}

async function openDevice(
  device: Engine['device'],
  { enableMemoryArena = true, profileFolder, precision = 'float32' }: EngineOptions,
  threads: number,
  reason: string,
): Promise<Engine> {
  if (precision !== 'float32' && device !== 'cuda') {
    throw new StillhouseError({
      code: 'PRECISION_NOT_ON_DEVICE',
      where: `precision ${precision}`,
      problem: 'the device computes products of float32 only',
      expected: `float32 on ${device}`,
      got: precision,
      remedy: 'Use float32, or the device cuda',
    });
  }
  const link = startWorker();
  try {
    await link.request({ kind: 'open', options: { device, threads, precision, enableMemoryArena, profileFolder } });
  } catch (error) {
    await link.terminate();
    if (!isStillhouseError(error, 'DEVICE_UNAVAILABLE')) throw error;
    throw new StillhouseError({ ...error.report, remedy: REMEDIES[device], cause: error });
  }
  const products = precision === 'float32' ? '' : `; products of ${precision}`;
  const deviceReason = `${reason}${describeMemory(device)}${products}`;
  return createEngine(link, { device, deviceReason, precision });
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
