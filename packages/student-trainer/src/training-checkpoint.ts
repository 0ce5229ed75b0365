import { readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { openSafetensors, writeSafetensors } from '@stillhouse/checkpoint';
import { publishDirectory, stageDirectory, writeFileAtomically } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import type { DeviceTensor, Engine } from '@stillhouse/runtime';
import type { DataPosition } from './data-order.ts';
import type { Parameter } from './parameters.ts';

/** What a run needs besides tensors to go on exactly. */
export interface TrainingState {
  /** Steps done. */
  readonly step: number;
  readonly position: DataPosition;
  readonly tokensSeen: number;
  readonly elapsedMs: number;
}

const CHECKPOINT_FOLDER = 'checkpoints';
const STATE_FILE = 'state.json';

const TENSOR_FILES: readonly { readonly file: string; readonly of: (parameter: Parameter) => DeviceTensor }[] = [
  { file: 'weights.safetensors', of: ({ weight }) => weight },
  { file: 'first-moments.safetensors', of: ({ firstMoment }) => firstMoment },
  { file: 'second-moments.safetensors', of: ({ secondMoment }) => secondMoment },
];

const folderOf = (out: string, step: number) => join(out, CHECKPOINT_FOLDER, `step-${String(step).padStart(8, '0')}`);

/** Steps of the whole checkpoints in a run's folder, ascending; a checkpoint that was not finished has no name yet. */
export async function listCheckpoints(out: string): Promise<readonly number[]> {
  const names = await readdir(join(out, CHECKPOINT_FOLDER)).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return [];
    throw error;
  });
  return names.flatMap((name) => (/^step-\d+$/.test(name) ? [Number(name.slice(5))] : [])).sort((a, b) => a - b);
}

/** Writes weights, moments and state under one name at once, then removes all but the `keep` newest. */
export async function saveCheckpoint(
  engine: Engine,
  out: string,
  parameters: readonly Parameter[],
  state: TrainingState,
  keep: number,
): Promise<void> {
  const folder = folderOf(out, state.step);
  const staged = await stageDirectory(folder);
  const byName = new Map(parameters.map((parameter) => [parameter.name, parameter]));
  for (const { file, of } of TENSOR_FILES) {
    const specs = parameters.map(({ name, shape, weight }) => ({
      name,
      shape,
      dtype: weight.dtype as 'float32' | 'float64',
    }));
    await writeSafetensors(join(staged, file), specs, async (name) => {
      const data = await engine.download(of(byName.get(name)!));
      return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    });
  }
  await writeFileAtomically(join(staged, STATE_FILE), `${JSON.stringify(state, null, 2)}\n`);
  await publishDirectory(staged, folder);
  const old = (await listCheckpoints(out)).slice(0, -keep);
  for (const step of old) await rm(folderOf(out, step), { recursive: true, force: true });
}

/**
 * Puts the newest checkpoint's tensors back into `parameters`.
 * @returns its state, or `undefined` when there is none
 * @throws StillhouseError CHECKPOINT_MISMATCH when it belongs to another student
 */
export async function restoreCheckpoint(
  engine: Engine,
  out: string,
  parameters: readonly Parameter[],
): Promise<TrainingState | undefined> {
  const newest = (await listCheckpoints(out)).at(-1);
  if (newest === undefined) return undefined;
  const folder = folderOf(out, newest);
  for (const { file, of } of TENSOR_FILES) {
    const source = await openSafetensors(join(folder, file));
    try {
      for (const parameter of parameters) {
        const info = source.tensors.get(parameter.name);
        if (
          info === undefined ||
          info.dtype !== parameter.weight.dtype ||
          info.shape.join() !== parameter.shape.join()
        ) {
          throw new StillhouseError({
            code: 'CHECKPOINT_MISMATCH',
            where: join(folder, file),
            problem: `tensor ${parameter.name} is not that of this student`,
            expected: `${parameter.weight.dtype} [${parameter.shape.join(', ')}]`,
            got: info === undefined ? 'none' : `${info.dtype} [${info.shape.join(', ')}]`,
            remedy: 'Resume with the student the run was started with',
          });
        }
        const bytes = await source.readRaw(parameter.name);
        engine.write(
          of(parameter),
          parameter.weight.dtype === 'float64' ? new Float64Array(bytes.buffer) : new Float32Array(bytes.buffer),
        );
      }
    } finally {
      await source.close();
    }
  }
  return JSON.parse(await readFile(join(folder, STATE_FILE), 'utf8')) as TrainingState;
}
