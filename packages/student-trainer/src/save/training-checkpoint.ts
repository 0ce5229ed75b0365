import { readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { openSafetensors, type StoredDtype, writeSafetensors } from '@stillhouse/checkpoint';
import { type FileDigest, publishDirectory, stageDirectory, writeFileAtomically } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import type { DeviceTensor, Engine } from '@stillhouse/runtime';
import { formatTensorType, TENSOR_ARRAYS, type TensorData } from '@stillhouse/tensor-types';
import type { DataPosition } from '../data/data-order.ts';
import type { StateTensor } from '../optimiser/adamw.ts';
import { findNonFinite } from '../run/non-finite.ts';
import type { StudentState } from '../step/student.ts';
import { checkFiles, writeChecksums } from './checkpoint-checksums.ts';

/** What a run needs besides tensors to go on exactly. */
export interface TrainingState {
  /** Steps done. */
  readonly step: number;
  /** The stage that made the last of them, where the run has stages. */
  readonly stage?: string;
  readonly position: DataPosition;
  readonly tokensSeen: number;
  readonly elapsedMs: number;
}

/** What the tensors belong to, wherever cache and student lie on this machine. */
export interface RunIdentity {
  readonly cacheDigest: string;
  /** sha256 of the student's config.json, parsed and printed again. */
  readonly configSha256: string;
  /** Of the weights that do not learn, which a checkpoint does not hold; `undefined` where all do. */
  readonly frozenSha256: string | undefined;
}

export interface CheckpointContents {
  readonly tensors: StudentState;
  readonly state: TrainingState;
  readonly identity: RunIdentity;
}

const CHECKPOINT_FOLDER = 'checkpoints';
const STATE_FILE = 'state.json';

const TENSOR_FILES = ['weights', 'first-moments', 'second-moments'] as const satisfies (keyof StudentState)[];

const fileOf = (part: keyof StudentState) => `${part}.safetensors`;

const FILES = [...TENSOR_FILES.map(fileOf), STATE_FILE];

const folderOf = (out: string, step: number) => join(out, CHECKPOINT_FOLDER, `step-${String(step).padStart(8, '0')}`);

async function listFolder(out: string): Promise<readonly string[]> {
  return readdir(join(out, CHECKPOINT_FOLDER)).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return [];
    throw error;
  });
}

/** Steps of the whole checkpoints in a run's folder, ascending; a checkpoint that was not finished has no name yet. */
export async function listCheckpoints(out: string): Promise<readonly number[]> {
  const names = await listFolder(out);
  return names.flatMap((name) => (/^step-\d+$/.test(name) ? [Number(name.slice(5))] : [])).sort((a, b) => a - b);
}

/**
 * Writes the weights that learn, moments, state and their checksums under one name at once, then removes all but the
 * `keep` newest. Checkpoints of later steps are of a continuation that was given up, and go too.
 * @throws StillhouseError TRAINING_DIVERGED when a tensor is not finite, DISK_FULL, NOT_WRITABLE: in each case the
 *   checkpoints before are as they were and nothing of this one is left
 */
export async function saveCheckpoint(
  engine: Engine,
  out: string,
  { tensors, state, identity }: CheckpointContents,
  keep: number,
): Promise<void> {
  const folder = folderOf(out, state.step);
  const staged = await stageDirectory(folder);
  try {
    const digests: Record<string, FileDigest> = {};
    for (const part of TENSOR_FILES) {
      const file = fileOf(part);
      const byName = new Map(tensors[part].map(({ name, tensor }) => [name, tensor]));
      const specs = tensors[part].map(({ name, tensor }) => ({
        name,
        shape: tensor.shape,
        dtype: storedDtype(tensor),
      }));
      digests[file] = await writeSafetensors(join(staged, file), specs, async (name) => {
        const data = await engine.download(byName.get(name)!);
        refuseNonFinite(folder, file, name, data);
        return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
      });
    }
    const stateText = `${JSON.stringify({ ...state, ...identity }, null, 2)}\n`;
    digests[STATE_FILE] = await writeFileAtomically(join(staged, STATE_FILE), stateText);
    await writeChecksums(staged, digests);
    await publishDirectory(staged, folder);
  } catch (error) {
    await rm(staged, { recursive: true, force: true });
    throw error;
  }
  await removeOthers(out, state.step, keep);
}

/** Bits of bfloat16 numbers are stored as such numbers; all else as it is, so that it comes back bit for bit. */
const storedDtype = ({ dtype }: DeviceTensor): StoredDtype =>
  dtype === 'uint16' ? 'bfloat16' : (dtype as 'float32' | 'float64' | 'int8' | 'uint8');

function refuseNonFinite(folder: string, file: string, name: string, data: TensorData): void {
  const at = findNonFinite(data);
  if (at === undefined) return;
  throw new StillhouseError({
    code: 'TRAINING_DIVERGED',
    where: join(folder, file),
    problem: `the updates up to here left ${name} with a value that is no finite number, at element ${at}`,
    expected: 'finite values',
    got: String(data[at]),
    remedy: 'Nothing of this checkpoint was kept; start again in another --out with a lower --lr or --clip',
  });
}

async function removeOthers(out: string, step: number, keep: number): Promise<void> {
  const steps = await listCheckpoints(out);
  const kept = steps.filter((one) => one <= step).slice(-keep);
  for (const one of steps) {
    if (!kept.includes(one)) await rm(folderOf(out, one), { recursive: true, force: true });
  }
  // Of processes that were killed while they wrote.
  for (const name of await listFolder(out)) {
    if (/^\.step-\d+\.(partial|former)$/.test(name)) {
      await rm(join(out, CHECKPOINT_FOLDER, name), { recursive: true, force: true });
    }
  }
}

/** A checkpoint whose files are all as they were written. */
export interface FoundCheckpoint {
  readonly step: number;
  readonly folder: string;
}

/**
 * Finds a checkpoint and checks its files.
 * @param step of the checkpoint; the newest if not given
 * @returns `undefined` when there is no checkpoint at all
 * @throws StillhouseError CHECKPOINT_DAMAGED naming the file and the checkpoint before, CHECKPOINT_ABSENT when there is
 *   none of that step
 */
export async function findCheckpoint(out: string, step: number | undefined): Promise<FoundCheckpoint | undefined> {
  const steps = await listCheckpoints(out);
  if (step !== undefined && !steps.includes(step)) {
    throw new StillhouseError({
      code: 'CHECKPOINT_ABSENT',
      where: `--resume-step ${step}`,
      problem: `${out} has no checkpoint of that step`,
      expected: steps.length === 0 ? 'no --resume-step: there is no checkpoint' : `one of ${steps.join(', ')}`,
      got: String(step),
    });
  }
  const chosen = step ?? steps.at(-1);
  if (chosen === undefined) return undefined;
  const folder = folderOf(out, chosen);
  await checkFiles(folder, FILES, offerBefore(steps, chosen));
  return { step: chosen, folder };
}

/**
 * Puts a checkpoint's tensors back into `tensors`.
 * @returns its state
 * @throws StillhouseError CHECKPOINT_MISMATCH when it belongs to another student or another cache
 */
export async function restoreCheckpoint(
  engine: Engine,
  { folder }: FoundCheckpoint,
  tensors: StudentState,
  identity: RunIdentity,
): Promise<TrainingState> {
  const state = JSON.parse(await readFile(join(folder, STATE_FILE), 'utf8')) as TrainingState & RunIdentity;
  refuseOtherRun(folder, state, identity);
  for (const part of TENSOR_FILES) await restoreTensors(engine, join(folder, fileOf(part)), tensors[part]);
  const { step, stage, position, tokensSeen, elapsedMs } = state;
  return { step, ...(stage === undefined ? {} : { stage }), position, tokensSeen, elapsedMs };
}

/** Weights of a checkpoint by name; those that it does not hold are left out. */
export async function readCheckpointWeights(
  { folder }: FoundCheckpoint,
  names: ReadonlySet<string>,
): Promise<Map<string, Float32Array<ArrayBuffer>>> {
  const source = await openSafetensors(join(folder, fileOf('weights')));
  try {
    const weights = new Map<string, Float32Array<ArrayBuffer>>();
    for (const name of names) {
      if (source.tensors.has(name)) weights.set(name, await source.read(name, 'float32'));
    }
    return weights;
  } finally {
    await source.close();
  }
}

function offerBefore(steps: readonly number[], damaged: number): string {
  const before = steps.filter((one) => one < damaged).at(-1);
  return before === undefined
    ? 'There is no checkpoint before it: start again in another --out'
    : `Go on from the checkpoint before it with --resume --resume-step ${before}`;
}

function refuseOtherRun(folder: string, state: RunIdentity, now: RunIdentity): void {
  const parts = [
    ['cacheDigest', 'cache', 'the cache that the run was begun with: the same digest, wherever it lies'],
    ['configSha256', 'student', 'the student that the run was begun with'],
    ['frozenSha256', 'student: the weights that do not learn differ', 'the student that the run was begun with'],
  ] as const;
  for (const [key, what, expected] of parts) {
    if (state[key] === now[key]) continue;
    throw new StillhouseError({
      code: 'CHECKPOINT_MISMATCH',
      where: join(folder, STATE_FILE),
      problem: `the checkpoint belongs to another ${what}`,
      expected: String(state[key]),
      got: String(now[key]),
      remedy: `Give ${expected}`,
    });
  }
}

async function restoreTensors(engine: Engine, file: string, tensors: readonly StateTensor[]): Promise<void> {
  const source = await openSafetensors(file);
  try {
    for (const { name, tensor } of tensors) {
      const { dtype, shape } = tensor;
      const stored = storedDtype(tensor);
      const info = source.tensors.get(name);
      if (info === undefined || info.dtype !== stored || info.shape.join() !== shape.join()) {
        throw new StillhouseError({
          code: 'CHECKPOINT_MISMATCH',
          where: file,
          problem: `tensor ${name} is not that of this student`,
          expected: formatTensorType(stored, shape),
          got: info === undefined ? 'none' : formatTensorType(info.dtype, info.shape),
          remedy: 'Resume with the student the run was started with',
        });
      }
      const { buffer } = await source.readRaw(name);
      engine.write(tensor, new TENSOR_ARRAYS[dtype](buffer));
    }
  } finally {
    await source.close();
  }
}
