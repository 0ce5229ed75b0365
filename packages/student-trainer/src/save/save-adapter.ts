import { join } from 'node:path';
import { adapterNames, isAdapterName, type ModelConfig, writePeftAdapter } from '@stillhouse/checkpoint';
import { mergeAdapterGraph } from '@stillhouse/decoder';
import type { Engine } from '@stillhouse/runtime';
import type { FloatData, ParameterStore } from '../step/parameters.ts';

/** The folder beside the merged student that PEFT loads on top of the student as it came. */
export const ADAPTER_FOLDER = 'adapter';

/**
 * Reads a student's parameters with its adapters taken in, W + (alpha / r) · B A, in float32 and one at a time: nothing
 * in training changes. Tensors without an adapter are as they stand.
 */
export async function openMergedReader(
  engine: Engine,
  parameters: ParameterStore,
): Promise<(name: string) => Promise<FloatData>> {
  const { adapter, tensors } = parameters;
  const download = async (name: string) => (await engine.download(parameters.get(name).weight)) as FloatData;
  if (adapter === undefined) return download;
  const { dtype } = parameters.embedding.weight;
  const program = await engine.compile(mergeAdapterGraph(adapter, dtype === 'float64' ? 'float64' : 'float32'));
  const names = new Set(tensors.map(({ name }) => name));
  return async (name) => {
    const adapted = adapterNames(name.replace(/\.weight$/, ''));
    if (!names.has(adapted.a)) return download(name);
    const [w, a, b] = [name, adapted.a, adapted.b].map((one) => parameters.get(one).weight);
    const merged = engine.allocate(dtype, w!.shape);
    try {
      await engine.run([{ kind: 'run', program, inputs: { w: w!, a: a!, b: b! }, outputs: { merged } }]);
      return (await engine.download(merged)) as FloatData;
    } finally {
      engine.free(merged);
    }
  };
}

/**
 * Writes the adapters alone, in float32, as PEFT has them.
 * @param base folder of the student as it came
 * @param check throws where a value is not finite
 */
export async function saveAdapter(
  engine: Engine,
  parameters: ParameterStore,
  { out, base, config, check }: SaveAdapterOptions,
): Promise<void> {
  const { adapter, tensors } = parameters;
  if (adapter === undefined) return;
  const { rank, alpha, targets, layers } = adapter;
  await writePeftAdapter({
    out: join(out, ADAPTER_FOLDER),
    base,
    rank,
    alpha,
    targets,
    layers: layers.size === config.layerCount ? null : [...layers].sort((a, b) => a - b),
    tensors: tensors.filter(({ name }) => isAdapterName(name)),
    read: async (name) => {
      const data = (await engine.download(parameters.get(name).weight)) as Float32Array<ArrayBuffer>;
      check(name, data);
      return data;
    },
  });
}

export interface SaveAdapterOptions {
  readonly out: string;
  readonly base: string;
  readonly config: ModelConfig;
  readonly check: (name: string, data: FloatData) => void;
}
