import { createHash } from 'node:crypto';
import { EMBEDDING_NAME, FINAL_NORM_NAME, groupByLayer, outputMatrixName } from '@stillhouse/checkpoint';
import { gradientName } from '@stillhouse/decoder';
import type { LayerTensors } from '@stillhouse/model-runner';
import type { FloatDtype } from '@stillhouse/onnx-graph';
import type { DeviceTensor, Engine } from '@stillhouse/runtime';
import type { TrainingPlan } from '../plan/training-plan.ts';
import type { StudentAdapter } from './adapters.ts';

/** One tensor of the student on the device. */
export interface StudentTensor {
  readonly name: string;
  readonly shape: readonly number[];
  readonly weight: DeviceTensor;
  /** The accumulator of its gradient, of the same shape and dtype; absent where it is frozen. */
  readonly gradient?: DeviceTensor;
}

/** A tensor that learns. */
export type Parameter = StudentTensor & { readonly gradient: DeviceTensor };

/** The tensors of a student and its adapters, and the projections that its states are matched through. */
export interface ParameterStore {
  /** All of them, frozen ones too, in checkpoint order. */
  readonly tensors: readonly StudentTensor[];
  /** Those that learn. */
  readonly trained: readonly Parameter[];
  /** sha256 over the names and elements of those that do not; `undefined` where all learn. */
  readonly frozenSha256: string | undefined;
  get(name: string): StudentTensor;
  readonly adapter: StudentAdapter | undefined;
  /** Weights of layer n and of its adapters by local name. */
  readonly layerWeights: readonly LayerTensors[];
  /** Gradient accumulators of what learns of layer n, as the inputs and the outputs of the block gradient. */
  readonly layerGradients: readonly { readonly inputs: LayerTensors; readonly outputs: LayerTensors }[];
  /** The embedding and the output matrix; one tensor when they are tied. */
  readonly embedding: StudentTensor;
  readonly outputMatrix: StudentTensor;
  /** The final norm. */
  readonly norm: StudentTensor;
}

export type FloatData = Float32Array<ArrayBuffer> | Float64Array<ArrayBuffer>;

/** The initial values of a student's tensors. */
export interface InitialValues {
  readonly float: FloatDtype;
  /** The memory of what it gives is taken over. */
  readonly read: (name: string) => Promise<FloatData>;
}

/** Puts a student's parameters on the device, with zeroed gradients for those that learn. */
export async function createParameterStore(
  engine: Engine,
  { config, adapter, tensors: planned }: Pick<TrainingPlan, 'config' | 'adapter' | 'tensors'>,
  { float, read }: InitialValues,
): Promise<ParameterStore> {
  const byName = new Map<string, StudentTensor>();
  const frozen = createHash('sha256');
  for (const { name, shape, learns } of planned) {
    const data = await read(name);
    if (!learns) frozen.update(name).update(data);
    const weight = engine.upload(data, float, shape, { transfer: true });
    byName.set(name, { name, shape, weight, ...(learns ? { gradient: engine.allocate(float, shape) } : {}) });
  }
  const get = (name: string) => {
    const tensor = byName.get(name);
    if (tensor === undefined) throw new Error(`the student has no parameter ${name}`);
    return tensor;
  };
  const tensors = [...byName.values()];
  const learning = tensors.filter((tensor): tensor is Parameter => tensor.gradient !== undefined);
  const ofLayers = <Tensor extends StudentTensor>(from: readonly Tensor[]) =>
    groupByLayer(
      config.layerCount,
      from.map((tensor) => [tensor.name, tensor] as const),
    ).map((layer) => Object.entries(layer));
  return {
    tensors,
    trained: learning,
    frozenSha256: learning.length === tensors.length ? undefined : frozen.digest('hex'),
    get,
    adapter,
    layerWeights: ofLayers(tensors).map((entries) =>
      Object.fromEntries(entries.map(([name, { weight }]) => [name, weight])),
    ),
    layerGradients: ofLayers(learning).map((entries) => ({
      inputs: Object.fromEntries(entries.map(([name, { gradient }]) => [gradientName(name), gradient])),
      outputs: Object.fromEntries(entries.map(([name, { gradient }]) => [`${gradientName(name)}.sum`, gradient])),
    })),
    embedding: get(EMBEDDING_NAME),
    outputMatrix: get(outputMatrixName(config)),
    norm: get(FINAL_NORM_NAME),
  };
}

/** Decoupled weight decay applies to matrices; norms and biases are left alone (as GPT-3 and Llama trained). */
export function decays(parameter: { readonly shape: readonly number[] }): boolean {
  return parameter.shape.length >= 2;
}
