import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { type ModelConfig, writeSafetensors } from '@stillhouse/checkpoint';
import { adapterNames, mergeAdapterGraph } from '@stillhouse/decoder';
import { publishDirectory, stageDirectory, writeFileAtomically } from '@stillhouse/durable-files';
import type { Engine } from '@stillhouse/runtime';
import { isAdapterName, type StudentAdapter } from './adapters.ts';
import type { FloatData, ParameterStore } from './parameters.ts';

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

/** adapter_config.json as PEFT writes it. */
function describeAdapter(adapter: StudentAdapter, config: ModelConfig, base: string) {
  const { rank, alpha, targets, layers } = adapter;
  return {
    peft_type: 'LORA',
    task_type: 'CAUSAL_LM',
    base_model_name_or_path: base,
    r: rank,
    lora_alpha: alpha,
    target_modules: [...targets],
    layers_to_transform: layers.size === config.layerCount ? null : [...layers].sort((a, b) => a - b),
    lora_dropout: 0,
    bias: 'none',
    fan_in_fan_out: false,
    init_lora_weights: true,
    use_rslora: false,
    modules_to_save: null,
    inference_mode: true,
  };
}

/**
 * Writes the adapters alone, in float32, in PEFT's layout and under its names.
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
  const folder = join(out, ADAPTER_FOLDER);
  const staged = await stageDirectory(folder);
  try {
    const own = tensors.filter(({ name }) => isAdapterName(name));
    const byFileName = new Map(own.map((tensor) => [`base_model.model.${tensor.name}`, tensor]));
    const specs = [...byFileName].map(([name, { shape }]) => ({ name, shape, dtype: 'float32' as const }));
    await writeSafetensors(join(staged, 'adapter_model.safetensors'), specs, async (name) => {
      const { weight, name: ours } = byFileName.get(name)!;
      const data = (await engine.download(weight)) as Float32Array<ArrayBuffer>;
      check(ours, data);
      return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    });
    const text = `${JSON.stringify(describeAdapter(adapter, config, base), null, 2)}\n`;
    await writeFileAtomically(join(staged, 'adapter_config.json'), text);
    await publishDirectory(staged, folder);
  } catch (error) {
    await rm(staged, { recursive: true, force: true });
    throw error;
  }
}

export interface SaveAdapterOptions {
  readonly out: string;
  readonly base: string;
  readonly config: ModelConfig;
  readonly check: (name: string, data: FloatData) => void;
}
