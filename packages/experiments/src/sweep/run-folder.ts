import { join } from 'node:path';
import {
  type FolderLock,
  lockFolder,
  pathExists,
  readTextIfThere,
  writeFileAtomically,
} from '@stillhouse/durable-files';
import type { ExactMatchResult, KdResult } from '@stillhouse/evaluation';
import { RECIPE_FILE, type StepMetrics } from '@stillhouse/student-trainer';

/** What a sweep keeps of a run beside what `train` and `eval` write. */
export interface RunRecord {
  /** Of training, over all attempts, with what was lost to kills up to a few seconds. */
  readonly wallMs: number;
  /** Of all processors. */
  readonly cpuMs: number;
  readonly failure: RunFailure | null;
}

export interface RunFailure {
  readonly code: string;
  readonly message: string;
}

/** What `train` leaves of a finished run. */
export interface TrainedRun {
  readonly steps: number;
  readonly last: StepMetrics;
  readonly cacheDigest: string;
}

export const KD_FILE = 'kd.json';
export const EXACT_MATCH_FILE = 'exact-match.json';
const RUN_RECORD_FILE = 'sweep-run.json';
const NEW_RECORD: RunRecord = { wallMs: 0, cpuMs: 0, failure: null };

/** Everything that is known of a run by the files in its folder. */
export interface RunFiles {
  readonly isBegun: boolean;
  readonly record: RunRecord;
  /** Undefined until the student is there. */
  readonly trained: TrainedRun | undefined;
  readonly kd: KdResult | undefined;
  readonly exactMatch: ExactMatchResult | undefined;
}

export async function readRunFiles(folder: string): Promise<RunFiles> {
  const [record, trained, kd, exactMatch] = await Promise.all(
    [RUN_RECORD_FILE, 'training.json', KD_FILE, EXACT_MATCH_FILE].map((file) => readJson(join(folder, file))),
  );
  const isBegun = await pathExists(join(folder, RECIPE_FILE));
  return {
    isBegun,
    record: (record as RunRecord | undefined) ?? NEW_RECORD,
    trained: trained as TrainedRun | undefined,
    kd: kd as KdResult | undefined,
    exactMatch: exactMatch as ExactMatchResult | undefined,
  };
}

/** All these files are written in one step: they are whole or absent. */
async function readJson(path: string): Promise<unknown> {
  const text = await readTextIfThere(path);
  return text === undefined ? undefined : JSON.parse(text);
}

export async function writeRunRecord(folder: string, record: RunRecord): Promise<void> {
  await writeFileAtomically(join(folder, RUN_RECORD_FILE), `${JSON.stringify(record, null, 2)}\n`);
}

/**
 * Keeps other processes of the sweep off a run.
 * @throws StillhouseError RUN_IN_USE, DISK_FULL, NOT_WRITABLE; of the lock, RUN_LOCK_LOST
 */
export function lockRun(folder: string): Promise<FolderLock> {
  return lockFolder(folder, '.sweep-lock', {
    inUseCode: 'RUN_IN_USE',
    inUse: 'another process is working on this run',
    lostCode: 'RUN_LOCK_LOST',
    lost: 'another process has taken this run over',
  });
}
