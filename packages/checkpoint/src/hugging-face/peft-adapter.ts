import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { publishDirectory, stageDirectory, writeFileAtomically } from '@stillhouse/durable-files';
import { writeSafetensors } from '../formats/safetensors/write-safetensors.ts';
import type { ParameterSpec } from '../parameters.ts';

/**
 * The tensors of a linear layer's low-rank adapter beside its own, as PEFT calls them: A [rank, in] and B [out, rank].
 */
export const adapterNames = (linear: string) =>
  ({ a: `${linear}.lora_A.weight`, b: `${linear}.lora_B.weight` }) as const;

/** Which of an adapter's two tensors a full or a local name is of; `undefined` where it is none. */
export function adapterSide(name: string): 'a' | 'b' | undefined {
  if (name.endsWith('.lora_A.weight')) return 'a';
  return name.endsWith('.lora_B.weight') ? 'b' : undefined;
}

/** Whether a tensor is of an adapter. */
export const isAdapterName = (name: string): boolean => adapterSide(name) !== undefined;

export interface AdapterToWrite {
  readonly out: string;
  /** Folder of the model as it came, without adapters. */
  readonly base: string;
  readonly rank: number;
  readonly alpha: number;
  /** Linear layers that have one, by the last part of their names. */
  readonly targets: readonly string[];
  /** Of these layers of the model; `null` for all. */
  readonly layers: readonly number[] | null;
  /** By their full names in the model. */
  readonly tensors: readonly ParameterSpec[];
  readonly read: (name: string) => Promise<Float32Array>;
}

/**
 * Writes adapters alone as a folder that PEFT loads on top of the model as it came, in float32; whole or not at all.
 * @throws StillhouseError those of `writeSafetensors`
 */
export async function writePeftAdapter(adapter: AdapterToWrite): Promise<void> {
  const { out, tensors, read } = adapter;
  const staged = await stageDirectory(out);
  try {
    const byFileName = new Map(tensors.map((tensor) => [`base_model.model.${tensor.name}`, tensor]));
    const specs = [...byFileName].map(([name, { shape }]) => ({ name, shape, dtype: 'float32' as const }));
    await writeSafetensors(join(staged, 'adapter_model.safetensors'), specs, (name) =>
      read(byFileName.get(name)!.name),
    );
    const text = `${JSON.stringify(describeAdapter(adapter), null, 2)}\n`;
    await writeFileAtomically(join(staged, 'adapter_config.json'), text);
    await publishDirectory(staged, out);
  } catch (error) {
    await rm(staged, { recursive: true, force: true });
    throw error;
  }
}

/** adapter_config.json as PEFT writes it. */
function describeAdapter({ base, rank, alpha, targets, layers }: AdapterToWrite) {
  return {
    peft_type: 'LORA',
    task_type: 'CAUSAL_LM',
    base_model_name_or_path: base,
    r: rank,
    lora_alpha: alpha,
    target_modules: [...targets],
    layers_to_transform: layers,
    lora_dropout: 0,
    bias: 'none',
    fan_in_fan_out: false,
    init_lora_weights: true,
    use_rslora: false,
    modules_to_save: null,
    inference_mode: true,
  };
}
