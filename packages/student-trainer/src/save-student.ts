import { join } from 'node:path';
import { describeParameters, type ModelConfig, writeModelFolder, writeSafetensors } from '@stillhouse/checkpoint';
import type { Engine } from '@stillhouse/runtime';
import { type ParameterStore, PROJECTION_NAME } from './parameters.ts';

export interface SaveOptions {
  readonly out: string;
  /** The folder the student came from: tokenizer and generation settings are carried along. */
  readonly student: string;
  readonly config: ModelConfig;
  readonly dtype: 'float32' | 'bfloat16' | 'float16';
}

/** Writes the student as a Hugging Face folder, and a learned projection beside it. */
export async function saveStudent(engine: Engine, parameters: ParameterStore, options: SaveOptions): Promise<void> {
  const { out, student, config, dtype } = options;
  const read = async (name: string) =>
    (await engine.download(parameters.get(name).weight)) as Float32Array<ArrayBuffer>;
  await writeModelFolder({
    out,
    config: config.raw,
    parameters: describeParameters(config),
    read,
    dtype,
    carryFrom: student,
  });
  const projection = parameters.all.find(({ name }) => name === PROJECTION_NAME);
  if (projection === undefined) return;
  await writeSafetensors(
    join(out, 'projection.safetensors'),
    [{ name: PROJECTION_NAME, shape: projection.shape, dtype: 'float32' }],
    async (name) => {
      const data = await read(name);
      return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    },
  );
}
