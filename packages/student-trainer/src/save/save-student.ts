import { join } from 'node:path';
import { describeParameters, type ModelConfig, writeModelFolder, writeSafetensors } from '@stillhouse/checkpoint';
import { StillhouseError } from '@stillhouse/errors';
import type { Engine } from '@stillhouse/runtime';
import { isProjection } from '../plan/projections.ts';
import { findNonFinite } from '../run/non-finite.ts';
import type { FloatData, ParameterStore } from '../step/parameters.ts';
import { openMergedReader, saveAdapter } from './save-adapter.ts';

export interface SaveOptions {
  readonly out: string;
  /** The folder the student came from: tokenizer and generation settings are carried along. */
  readonly student: string;
  readonly config: ModelConfig;
  readonly dtype: 'float32' | 'bfloat16' | 'float16';
}

/**
 * Writes the student as a Hugging Face folder, adapters taken in, and beside it the adapters alone as PEFT has them and
 * learned projections.
 * @throws StillhouseError TRAINING_DIVERGED when a weight is not finite
 */
export async function saveStudent(engine: Engine, parameters: ParameterStore, options: SaveOptions): Promise<void> {
  const { out, student, config, dtype } = options;
  const check = (name: string, data: FloatData) => {
    const at = findNonFinite(data);
    if (at === undefined) return;
    throw new StillhouseError({
      code: 'TRAINING_DIVERGED',
      where: out,
      problem: `the last updates left ${name} with a value that is no finite number, at element ${at}`,
      expected: 'finite values',
      got: String(data[at]),
      remedy: 'No student was saved; start again in another --out with a lower --lr or --clip',
    });
  };
  const readMerged = await openMergedReader(engine, parameters);
  const read = async (name: string) => {
    const data = (await readMerged(name)) as Float32Array<ArrayBuffer>;
    check(name, data);
    return data;
  };
  // First, as the folder counts as a model once the rest is there.
  await saveAdapter(engine, parameters, { out, base: student, config, check });
  await writeModelFolder({
    out,
    config: config.raw,
    parameters: describeParameters(config),
    read,
    dtype,
    carryFrom: student,
  });
  const projections = parameters.tensors.filter(({ name }) => isProjection(name));
  if (projections.length === 0) return;
  await writeSafetensors(
    join(out, 'projection.safetensors'),
    projections.map(({ name, shape }) => ({ name, shape, dtype: 'float32' })),
    async (name) => {
      const data = await read(name);
      return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    },
  );
}
