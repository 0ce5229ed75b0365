import { open, readdir, readFile, truncate } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { explainWriteFailure, makeFolder } from '@stillhouse/durable-files';
import { HELD_OUT_FILE } from './held-out.ts';
import { METRICS_FILE, readStepLog } from './metrics.ts';
import { encodeRestart, encodeScalars, encodeVersion, readEvents, type Scalar } from './tensorboard-events.ts';

/** Under a run's folder: what `tensorboard --logdir` is pointed at. */
export const TENSORBOARD_FOLDER = 'tensorboard';

/** The groups of scalars, by the file whose lines they are. */
const GROUPS = { train: METRICS_FILE, 'held-out': HELD_OUT_FILE } as const;
export type ScalarGroup = keyof typeof GROUPS;

interface Line {
  readonly step: number;
}

/** Event files for TensorBoard beside a run's logs: the same numbers under the same names, as `train/loss`. */
export interface TensorboardLog {
  /** @throws StillhouseError DISK_FULL, NOT_WRITABLE */
  append(group: ScalarGroup, line: Line): Promise<void>;
  close(): Promise<void>;
}

/**
 * Begins an event file, as every process of a run does. Events beyond `lastStep` are of steps that were not saved: they
 * are cut off the files that are there, and TensorBoard is told to forget them. What the run's logs have and the files
 * lack, such as a run that was begun without them, is written first.
 * @throws StillhouseError DISK_FULL, NOT_WRITABLE
 */
export async function openTensorboardLog(out: string, lastStep: number): Promise<TensorboardLog> {
  const folder = join(out, TENSORBOARD_FOLDER);
  await makeFolder(folder);
  const files = (await readdir(folder)).filter((name) => name.startsWith('events.out.tfevents.')).sort();
  const known = new Set<string>();
  for (const file of files) await cutBehind(join(folder, file), lastStep, known);
  // Readers go through the files in the order of their names.
  const newest = Number(/tfevents\.(\d+)\./.exec(files.at(-1) ?? '')?.[1] ?? 0);
  const seconds = Math.max(Math.floor(Date.now() / 1000), newest + 1);
  const path = join(folder, `events.out.tfevents.${String(seconds).padStart(10, '0')}.${hostname()}`);
  const guard = async <T>(work: () => Promise<T>): Promise<T> => {
    try {
      return await work();
    } catch (cause) {
      throw explainWriteFailure(path, cause);
    }
  };
  const handle = await guard(() => open(path, 'ax'));
  const append = (group: ScalarGroup, line: Line) =>
    guard(() => handle.appendFile(encodeScalars(line.step, listScalars(group, line), Date.now() / 1000)));
  try {
    await guard(() => handle.appendFile(encodeVersion(Date.now() / 1000)));
    if (files.length > 0) await guard(() => handle.appendFile(encodeRestart(lastStep + 1, Date.now() / 1000)));
    for (const group of Object.keys(GROUPS) as ScalarGroup[]) {
      for (const line of await readStepLog<Line>(out, GROUPS[group])) {
        if (line.step <= lastStep && !known.has(`${group} ${line.step}`)) await append(group, line);
      }
    }
  } catch (error) {
    await handle.close();
    throw error;
  }
  return { append, close: () => handle.close() };
}

async function cutBehind(path: string, lastStep: number, known: Set<string>): Promise<void> {
  const file = await readFile(path);
  let end = 0;
  for (const { event, end: next } of readEvents(file)) {
    if (event.step > lastStep) break;
    end = next;
    const group = event.tags[0]?.split('/')[0];
    if (group !== undefined) known.add(`${group} ${event.step}`);
  }
  if (end === file.length) return;
  try {
    await truncate(path, end);
  } catch (cause) {
    throw explainWriteFailure(path, cause);
  }
}

/** All numbers of a line but its step; numbers of an object within it by both names. */
function listScalars(group: string, { step: _, ...line }: Line): readonly Scalar[] {
  return Object.entries(line).flatMap(([name, value]: [string, unknown]): readonly Scalar[] => {
    if (typeof value === 'number') return [[`${group}/${name}`, value]];
    return typeof value === 'object' && value !== null ? listScalars(`${group}/${name}`, value as Line) : [];
  });
}
