import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { lockFolder, makeFolder, readTextIfThere, writeFileAtomically } from '@stillhouse/durable-files';
import { isStillhouseError, StillhouseError } from '@stillhouse/errors';
import { SETTINGS_FREE_ON_RESUME, type StagedSettings } from '@stillhouse/student-trainer';
import type { Overrides } from './sweep-axes.ts';
import type { SweepPlan } from './sweep-plan.ts';
import { type MeasurementSettings, RUN_SETTINGS, type RunSettings } from './sweep-settings.ts';

/** What a sweep's folder says of the sweep: all that its report needs to know beside the runs' own files. */
export interface SweepRecord {
  readonly measurement: MeasurementSettings;
  readonly runs: readonly RecordedRun[];
}

export interface RecordedRun {
  readonly name: string;
  readonly overrides: Overrides;
  readonly settings: RecordedSettings;
  /** Of the cache that it learns from. */
  readonly cacheDigest: string;
}

type RecordedSettings = RunSettings & Pick<StagedSettings, 'stages'>;

export const SWEEP_FILE = 'sweep.json';

/** Between two looks at whether another process is done with the sweep's own files. */
const LOOK_AGAIN_MS = 100;

/**
 * Processes that share a sweep write its own files one after the other: each works on what the ones before have left.
 * @throws StillhouseError SWEEP_LOCK_LOST, and those of `work`
 */
export async function inTurn<Result>(out: string, work: () => Promise<Result>): Promise<Result> {
  const words = {
    inUseCode: 'SWEEP_IN_USE',
    inUse: 'another process is writing here',
    lostCode: 'SWEEP_LOCK_LOST',
    lost: 'another process has taken the turn',
  };
  for (;;) {
    try {
      const lock = await lockFolder(out, '.lock', words);
      try {
        return await work();
      } finally {
        await lock.release();
      }
    } catch (error) {
      if (!isStillhouseError(error, 'SWEEP_IN_USE')) throw error;
      await sleep(LOOK_AGAIN_MS);
    }
  }
}

/**
 * The sweep of a folder.
 * @returns undefined where there is none
 */
export async function readSweepRecord(out: string): Promise<SweepRecord | undefined> {
  const path = join(out, SWEEP_FILE);
  const text = await readTextIfThere(path);
  if (text === undefined) return undefined;
  try {
    const record = JSON.parse(text) as SweepRecord;
    if (Array.isArray(record.runs)) return record;
  } catch {}
  throw new StillhouseError({
    code: 'SWEEP_FILE_DAMAGED',
    where: path,
    problem: 'it is not what a sweep has written',
    remedy: 'Delete the file and run the sweep again: finished runs stay finished',
  });
}

/**
 * Writes what the sweep is. Runs may be added to a sweep and taken out of it, but none may be another than it was.
 * @param digests of each run's cache, by name
 * @throws StillhouseError SWEEP_DIFFERS
 */
export async function recordSweep(plan: SweepPlan, digests: ReadonlyMap<string, string>): Promise<void> {
  const { out, measurement } = plan;
  const runs = plan.runs.map(({ name, overrides, settings }): RecordedRun => {
    const { out: _out, resume: _resume, resumeStep: _resumeStep, ...own } = settings;
    return { name, overrides, settings: own, cacheDigest: digests.get(name)! };
  });
  await makeFolder(out);
  await inTurn(out, async () => {
    const before = await readSweepRecord(out);
    for (const run of runs) {
      const former = before?.runs.find(({ name }) => name === run.name);
      if (former !== undefined) refuseOther(former, run, join(out, SWEEP_FILE));
    }
    await writeFileAtomically(join(out, SWEEP_FILE), `${JSON.stringify({ measurement, runs }, null, 2)}\n`);
  });
}

function refuseOther(before: RecordedRun, now: RecordedRun, where: string): void {
  const keys = (Object.keys(RUN_SETTINGS) as (keyof RunSettings)[]).filter(
    (key) => !SETTINGS_FREE_ON_RESUME.includes(key),
  );
  const compare = (one: RunSettings | undefined, other: RunSettings | undefined, place = '') =>
    keys.map((key) => [`${place}${key}`, one?.[key], other?.[key]] as const);
  const [had, asked] = [before, now].map(({ settings }) => settings.stages ?? []);
  const pairs = [
    ...compare(before.settings, now.settings),
    ['stages', had!.map(({ name }) => name), asked!.map(({ name }) => name)] as const,
    ...asked!.flatMap(({ name, settings }, at) => compare(had![at]?.settings, settings, `${name}.`)),
    ['cache digest', before.cacheDigest, now.cacheDigest] as const,
  ];
  const differing = pairs.filter(([, one, other]) => JSON.stringify(one) !== JSON.stringify(other));
  if (differing.length === 0) return;
  const show = ([key, one, other]: (typeof pairs)[number]) =>
    `${key}: have ${JSON.stringify(one)}, asked ${JSON.stringify(other)}`;
  throw new StillhouseError({
    code: 'SWEEP_DIFFERS',
    where: `${where}, run ${now.name}`,
    problem: `the run was begun with other settings (${differing.map(show).join('; ')})`,
    remedy: 'Go on with the same recipe, or sweep into another --out',
  });
}
