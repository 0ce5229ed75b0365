import { describeParameters, type ModelConfig } from '@stillhouse/checkpoint';
import { gradientName, type LayerTensors } from '@stillhouse/decoder';
import type { FloatDtype } from '@stillhouse/onnx-graph';
import type { DeviceTensor, Engine } from '@stillhouse/runtime';

/** One trained tensor with what its update needs, all on the device and of one shape and dtype. */
export interface Parameter {
  readonly name: string;
  readonly shape: readonly number[];
  readonly weight: DeviceTensor;
  readonly gradient: DeviceTensor;
  /** Adam's running means of the gradient and of its square. */
  readonly firstMoment: DeviceTensor;
  readonly secondMoment: DeviceTensor;
}

/** The parameters of a student, and of a projection when hidden states are matched through one. */
export interface ParameterStore {
  readonly all: readonly Parameter[];
  get(name: string): Parameter;
  /** Weights of layer n by name below `model.layers.n.`. */
  readonly layerWeights: readonly LayerTensors[];
  /** Gradient accumulators of layer n as the inputs and the outputs of the block gradient. */
  readonly layerGradients: readonly { readonly inputs: LayerTensors; readonly outputs: LayerTensors }[];
  /** The embedding and the output matrix; one parameter when they are tied. */
  readonly embedding: Parameter;
  readonly outputMatrix: Parameter;
}

export type FloatData = Float32Array<ArrayBuffer> | Float64Array<ArrayBuffer>;

/** Name of the learned layer between the student's hidden states and the teacher's, [teacher width, student width]. */
export const PROJECTION_NAME = 'projection.weight';

export interface StoreOptions {
  readonly config: ModelConfig;
  readonly float: FloatDtype;
  /** The initial value of a parameter; its memory is taken over. */
  readonly read: (name: string) => Promise<FloatData>;
  readonly projection?: { readonly teacherHidden: number };
}

/** Puts a student's parameters on the device, with zeroed gradients and moments. */
export async function createParameterStore(engine: Engine, options: StoreOptions): Promise<ParameterStore> {
  const { config, float, read, projection } = options;
  const specs = [...describeParameters(config)];
  if (projection !== undefined)
    specs.push({ name: PROJECTION_NAME, shape: [projection.teacherHidden, config.hiddenSize] });
  const byName = new Map<string, Parameter>();
  for (const { name, shape } of specs) {
    const allocate = () => engine.allocate(float, shape);
    byName.set(name, {
      name,
      shape,
      weight: engine.upload(await read(name), float, shape, { transfer: true }),
      gradient: allocate(),
      firstMoment: allocate(),
      secondMoment: allocate(),
    });
  }
  const get = (name: string) => {
    const parameter = byName.get(name);
    if (parameter === undefined) throw new Error(`the student has no parameter ${name}`);
    return parameter;
  };
  const layers = Array.from({ length: config.layerCount }, (_, layer) => {
    const prefix = `model.layers.${layer}.`;
    return [...byName.values()]
      .filter(({ name }) => name.startsWith(prefix))
      .map((parameter) => [parameter.name.slice(prefix.length), parameter] as const);
  });
  const embedding = get('model.embed_tokens.weight');
  return {
    all: [...byName.values()],
    get,
    layerWeights: layers.map((entries) => Object.fromEntries(entries.map(([name, { weight }]) => [name, weight]))),
    layerGradients: layers.map((entries) => ({
      inputs: Object.fromEntries(entries.map(([name, { gradient }]) => [gradientName(name), gradient])),
      outputs: Object.fromEntries(entries.map(([name, { gradient }]) => [`${gradientName(name)}.sum`, gradient])),
    })),
    embedding,
    outputMatrix: config.tieWordEmbeddings ? embedding : get('lm_head.weight'),
  };
}

/** Decoupled weight decay applies to matrices; norms and biases are left alone (as GPT-3 and Llama trained). */
export function decays(parameter: { readonly shape: readonly number[] }): boolean {
  return parameter.shape.length >= 2;
}
