import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { countParameters, readModelConfig } from '@stillhouse/checkpoint';
import { StillhouseError } from '@stillhouse/errors';
import { type RunFailure, type RunFiles, readRunFiles } from './run-folder.ts';
import type { Overrides } from './sweep-axes.ts';
import { type RecordedRun, readSweepRecord, type SweepRecord } from './sweep-folder.ts';
import { listDiffering, RUNS_FOLDER } from './sweep-plan.ts';

/** finished: trained and measured; trained: not measured yet. */
export type RunState = 'finished' | 'trained' | 'begun' | 'waiting' | 'failed';

/** One run of a sweep as its report has it; null is what is not known (yet) or was not asked for. */
export interface RunFigures {
  readonly name: string;
  readonly state: RunState;
  /** Has the lowest held-out KL at T = 1 of the runs from its cache. */
  readonly isBest: boolean;
  /** The settings that are not the same in all runs. */
  readonly settings: Overrides;
  /** Of the cache that it learned from. */
  readonly cacheDigest: string;
  readonly heldOutDigest: string | null;
  /** Of the last stage, where there are several. */
  readonly temperature: number;
  /** On held-out rows, in nats, as `eval --task kd` has it; at T = 1 and at the run's temperature. */
  readonly klAt1: Estimate | null;
  readonly klAtT: Estimate | null;
  readonly ce: Estimate | null;
  readonly top1Agreement: Estimate | null;
  /** As `eval --task exact-match` has it. */
  readonly accuracy: { readonly value: number; readonly low: number; readonly high: number } | null;
  readonly parameters: number | null;
  readonly weightBytes: number | null;
  readonly trainTokensPerSecond: number | null;
  /** New tokens while it answered the questions. */
  readonly decodeTokensPerSecond: number | null;
  /** Of training. */
  readonly wallMs: number;
  readonly cpuMs: number;
  /** wall time by the price of an hour */
  readonly price: number | null;
  readonly failure: RunFailure | null;
}

export interface Estimate {
  readonly value: number;
  readonly standardError: number | null;
}

/** The figures of all runs of a sweep. */
export interface SweepFigures {
  readonly out: string;
  /** The settings that are not the same in all runs. */
  readonly differing: readonly string[];
  /** By cache, the best first; those without figures last. */
  readonly runs: readonly RunFigures[];
}

/**
 * What is known of a sweep by the files in its folder.
 * @throws StillhouseError SWEEP_ABSENT, SWEEP_FILE_DAMAGED
 */
export async function readSweepFigures(out: string): Promise<SweepFigures> {
  const record = await readSweepRecord(out);
  if (record === undefined) {
    throw new StillhouseError({
      code: 'SWEEP_ABSENT',
      where: out,
      problem: 'there is no sweep in this folder',
      remedy: 'Give the --out of a sweep',
    });
  }
  const differing = listDiffering(record.runs);
  const runs: RunFigures[] = [];
  for (const run of record.runs) runs.push(await readRun(out, run, record, differing));
  return { out, differing, runs: markBest(sortRuns(runs)) };
}

async function readRun(
  out: string,
  { name, settings, cacheDigest }: RecordedRun,
  { measurement }: SweepRecord,
  differing: readonly (keyof typeof settings)[],
): Promise<RunFigures> {
  const folder = join(out, RUNS_FOLDER, name);
  const files = await readRunFiles(folder);
  const { trained, kd, exactMatch, record } = files;
  const { temperature } = settings.stages?.at(-1)?.settings ?? settings;
  const estimate = (value: number | undefined, standardError: number | null | undefined): Estimate | null =>
    value === undefined ? null : { value, standardError: standardError ?? null };
  const klAt = (t: number) => estimate(kd?.kl[String(t)], kd?.standardErrors.kl[String(t)]);
  const { pricePerHour } = measurement;
  return {
    name,
    state: stateOf(files, measurement.questions !== undefined),
    isBest: false,
    settings: Object.fromEntries(differing.map((key) => [key, settings[key] ?? null])),
    cacheDigest,
    heldOutDigest: kd?.cacheDigest ?? null,
    temperature,
    klAt1: klAt(1),
    klAtT: klAt(temperature),
    ce: estimate(kd?.ce, kd?.standardErrors.ce),
    top1Agreement: estimate(kd?.top1Agreement, kd?.standardErrors.top1Agreement),
    accuracy: exactMatch === undefined ? null : { value: exactMatch.accuracy, ...exactMatch.interval },
    ...(await measureStudent(folder, trained !== undefined)),
    trainTokensPerSecond: trained === undefined ? null : (trained.last.tokensSeen / trained.last.elapsedMs) * 1000,
    decodeTokensPerSecond: exactMatch?.tokensPerSecond ?? null,
    wallMs: record.wallMs,
    cpuMs: record.cpuMs,
    price: pricePerHour === undefined ? null : (record.wallMs / 3_600_000) * pricePerHour,
    failure: record.failure,
  };
}

function stateOf({ isBegun, record, trained, kd, exactMatch }: RunFiles, asksQuestions: boolean): RunState {
  if (record.failure !== null) return 'failed';
  if (trained !== undefined)
    return kd !== undefined && (exactMatch !== undefined || !asksQuestions) ? 'finished' : 'trained';
  return isBegun ? 'begun' : 'waiting';
}

async function measureStudent(
  folder: string,
  isThere: boolean,
): Promise<{ readonly parameters: number | null; readonly weightBytes: number | null }> {
  if (!isThere) return { parameters: null, weightBytes: null };
  const config = await readModelConfig(folder);
  const parameters = countParameters(config);
  const weights = (await readdir(folder)).filter((file) => /^model.*\.safetensors$/.test(file));
  const sizes = await Promise.all(weights.map((file) => stat(join(folder, file))));
  return { parameters, weightBytes: sizes.reduce((sum, { size }) => sum + size, 0) };
}

function sortRuns(runs: readonly RunFigures[]): readonly RunFigures[] {
  const digests = [...new Set(runs.map(({ cacheDigest }) => cacheDigest))];
  const kl = (run: RunFigures) => run.klAt1?.value ?? Number.POSITIVE_INFINITY;
  return [...runs].sort(
    (a, b) =>
      digests.indexOf(a.cacheDigest) - digests.indexOf(b.cacheDigest) || (kl(a) < kl(b) ? -1 : kl(a) > kl(b) ? 1 : 0),
  );
}

function markBest(sorted: readonly RunFigures[]): readonly RunFigures[] {
  return sorted.map((run, at) => ({
    ...run,
    isBest: run.klAt1 !== null && sorted.findIndex(({ cacheDigest }) => cacheDigest === run.cacheDigest) === at,
  }));
}
