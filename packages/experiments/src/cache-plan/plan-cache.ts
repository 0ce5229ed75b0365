import { openModelWeights, readModelConfig } from '@stillhouse/checkpoint';
import { StillhouseError } from '@stillhouse/errors';
import { type LabelFigures, type LabelMode, listLabelModes, measureLabelQuality } from '@stillhouse/evaluation';
import { computeFinalStates, uploadWeight } from '@stillhouse/model-runner';
import { sharedVocabulary } from '@stillhouse/objectives';
import { type DeviceTensor, type Engine, openEngine } from '@stillhouse/runtime';
import { integer, number, requireSetting, resolveSettings, type SettingsOf, text } from '@stillhouse/settings';
import { type CacheDescription, estimateCacheSize, type LabelledRow } from '@stillhouse/teacher-cache';
import { BUILD_SETTINGS, joinStates, type Pilot, scorePilot } from '@stillhouse/teacher-inference';
import { CODED_BYTES, PILOT_TOP_K, type TriedPolicy, tryPolicies } from './policies.ts';

const { teacher, data, tokenizer, temperatures, maxLength, limit, device, batchTokens, threads } = BUILD_SETTINGS;

/** Every setting of `stillhouse cache plan`. */
export const PLAN_SETTINGS = {
  teacher,
  data,
  student: text('model folder of a student whose gradients are compared', undefined),
  budget: number('bytes of labels that a token may take; the output matrix comes on top', 400, { above: 0 }),
  students: integer('students that will be trained from the cache: each reads it once', 1, { min: 1 }),
  temperature: number('temperature at which the students will be trained', 2, { above: 0 }),
  pilotShare: number('share of the rows that the teacher scores for the plan', 0.01, { above: 0, max: 1 }),
  pilotPositions: integer('label positions that the pilot has at least, if the data has them', 4000, { min: 64 }),
  positionsLimit: integer('positions that are measured', 300, { min: 16 }),
  tokenizer,
  temperatures,
  maxLength,
  limit,
  device,
  batchTokens,
  threads,
} as const;

/** The settings of a plan, checked. */
export type PlanSettings = SettingsOf<typeof PLAN_SETTINGS>;

export interface PlannedPolicy {
  readonly name: string;
  /** For `cache build`. */
  readonly flags: string;
  readonly labels: 'topk' | 'full';
  readonly bytesPerToken: number;
  /** Of the whole cache, rows and output matrix included. */
  readonly totalBytes: number;
  /** What all students read together. */
  readonly readBytes: number;
  readonly at: Readonly<Record<string, LabelFigures>>;
}

/** What a plan found. */
export interface CachePlan {
  readonly pilot: { readonly rows: number; readonly positions: number; readonly measuredPositions: number };
  readonly data: { readonly rows: number; readonly tokens: number; readonly positions: number };
  readonly policies: readonly PlannedPolicy[];
  /** Of the policies within the budget the one whose gradients are nearest to the true ones; null if none is. */
  readonly recommended: string | null;
  readonly recipe: PlanSettings;
}

/** What a plan tells while it works. */
export interface PlanEvents {
  readonly onStage?: (stage: string) => void;
  /** More policies for the same rows, for benchmarks. */
  readonly addPolicies?: (
    measured: readonly LabelledRow[],
    description: CacheDescription,
  ) => Promise<readonly TriedPolicy[]>;
}

/** One of so many rows is kept from the codebooks and measured. */
const HELD_OUT = 4;
/** Gradients that near to each other are equally good: then fewer bytes are better. */
const COSINE_TIE = 2e-5;

/**
 * Scores a pilot with the teacher, holds the labels that a cache could have against the exact ones, as a student sees
 * them, and recommends a policy. Nothing is written.
 * @throws StillhouseError as `cache build` and `cache quality` do
 */
export async function planCache(settings: PlanSettings, events: PlanEvents = {}): Promise<CachePlan> {
  const student = requireSetting(settings, 'student', 'DIR');
  requireSetting(settings, 'teacher', 'DIR');
  requireGridTemperature(settings);
  const { pilotShare, pilotPositions } = settings;
  const { vocabSize: studentVocab } = await readModelConfig(student);
  const pilot = await scorePilot(
    { ...resolveSettings(BUILD_SETTINGS, {}), ...settings },
    {
      share: pilotShare,
      leastPositions: pilotPositions,
      topK: PILOT_TOP_K,
      onPlan: ({ rows, positions }) =>
        events.onStage?.(`the teacher scores ${rows} rows with about ${positions} label positions`),
    },
  );
  const vocabSize = sharedVocabulary(pilot.description, studentVocab, student);
  const { measured, fitted } = splitPilot(pilot, settings.positionsLimit);
  events.onStage?.('codebooks are fitted');
  const own = await tryPolicies(measured, pilot.description, await pilot.fitCodebooks(fitted, CODED_BYTES));
  const policies = [...own, ...((await events.addPolicies?.(measured, pilot.description)) ?? [])];
  events.onStage?.(`${policies.length} policies are measured`);
  const figures = await measurePolicies(settings, measured, policies, vocabSize);
  const planned = policies.map((policy, i) => describePolicy(policy, pilot, settings, figures[i]!));
  return {
    pilot: {
      rows: pilot.rows.length,
      positions: countPositions(pilot.rows),
      measuredPositions: countPositions(measured),
    },
    data: pilot.totals,
    policies: planned,
    recommended: recommend(planned, settings)?.name ?? null,
    recipe: settings,
  };
}

function requireGridTemperature({ temperature: wanted, temperatures: grid }: PlanSettings): void {
  if ((grid as readonly number[]).includes(wanted)) return;
  throw new StillhouseError({
    code: 'TEMPERATURE_NOT_IN_GRID',
    where: `--temperature ${wanted}`,
    problem: 'policies are measured at the temperatures of the grid',
    expected: `one of ${grid.join(', ')}`,
    got: String(wanted),
    remedy: 'Add it to --temperatures',
  });
}

const countPositions = (rows: readonly LabelledRow[]) => rows.reduce((sum, { positions }) => sum + positions.length, 0);

/** Rows to measure, up to so many positions, and the others. With few rows the same ones serve for both. */
function splitPilot({ rows }: Pilot, positionsLimit: number) {
  const heldOut = rows.filter((_, i) => i % HELD_OUT === HELD_OUT - 1);
  const fitted = rows.filter((_, i) => i % HELD_OUT !== HELD_OUT - 1);
  const measured: LabelledRow[] = [];
  for (const row of heldOut.length > 0 ? heldOut : rows) {
    if (countPositions(measured) >= positionsLimit) break;
    measured.push(row);
  }
  return { measured, fitted };
}

type FiguresByTemperature = Readonly<Record<string, LabelFigures>>;

async function measurePolicies(
  settings: PlanSettings,
  measured: readonly LabelledRow[],
  policies: readonly TriedPolicy[],
  vocabSize: number,
): Promise<readonly FiguresByTemperature[]> {
  const [student, teacher] = await Promise.all([
    openModelWeights(settings.student!),
    openModelWeights(settings.teacher!),
  ]);
  const { device: wanted, threads: count } = settings;
  const engine = await openEngine({ device: wanted, ...(count === undefined ? {} : { threads: count }) });
  try {
    const requests = measured.map(({ row: { inputIds }, positions }) => ({ inputIds, positions }));
    const studentStates = await computeFinalStates(engine, student, requests, 'float32');
    const [teacherHead, studentHead] = await Promise.all(
      [teacher, student].map(async (model) =>
        cutRows(engine, await uploadWeight(engine, model.head, 'float32'), vocabSize),
      ),
    );
    const { modes } = await measureLabelQuality(
      engine,
      {
        rows: requests,
        teacherStates: joinStates(measured.map(({ hidden }) => hidden!.get('final')!.values as Float32Array)),
        teacherHead: teacherHead!,
        studentStates,
        studentHead: studentHead!,
      },
      policies.map((policy) => modeOf(policy, vocabSize)),
      { temperatures: settings.temperatures, chunkPositions: CHUNK_POSITIONS },
    );
    return modes.map(({ at }) => at);
  } finally {
    await engine.close();
    await Promise.all([student, teacher].map((model) => model.close()));
  }
}

/** Positions whose logits are in memory at a time. */
const CHUNK_POSITIONS = 32;

const cutRows = (engine: Engine, head: DeviceTensor, rows: number) =>
  engine.view(head, { offset: 0, shape: [rows, head.shape[1]!] });

/** The mode that makes the most of a policy's labels: refined if there are top-k labels beside the states. */
function modeOf({ description, rows, hiddenScale, name, mode }: TriedPolicy, vocabSize: number): LabelMode {
  const { topk, hidden } = description.labels;
  const best = hidden === null ? 'topk tail' : topk === null ? 'full' : 'full refined';
  const wanted = mode ?? best;
  const modes = listLabelModes({
    description,
    vocabSize,
    ...(hiddenScale === undefined ? {} : { hiddenScale }),
    readRow: async (row) => rows[row]!,
  });
  return { ...modes.find((one) => one.name === wanted)!, name };
}

function describePolicy(
  { name, flags, description, bytesPerToken }: TriedPolicy,
  { totals }: Pilot,
  { students }: PlanSettings,
  at: FiguresByTemperature,
): PlannedPolicy {
  const isFull = description.labels.hidden !== null;
  const fixed = estimateCacheSize(
    { ...description, labels: { topk: null, hidden: null, head: isFull } },
    { rows: totals.rows, tokens: totals.tokens, positions: totals.positions },
  ).totalBytes;
  const totalBytes = Math.round(fixed + bytesPerToken * totals.positions);
  return {
    name,
    flags,
    labels: isFull ? 'full' : 'topk',
    bytesPerToken,
    totalBytes,
    readBytes: totalBytes * students,
    at,
  };
}

/** Within the budget, the gradients nearest to the true ones at the temperature of training; of equals the smallest. */
export function recommend(
  policies: readonly PlannedPolicy[],
  { budget, temperature }: Pick<PlanSettings, 'budget' | 'temperature'>,
): PlannedPolicy | undefined {
  const cosine = ({ at }: PlannedPolicy) => at[String(temperature)]?.meanGradientCosine ?? -1;
  const affordable = policies.filter((policy) => policy.bytesPerToken <= budget && cosine(policy) > -1);
  const best = Math.max(...affordable.map(cosine));
  return affordable
    .filter((policy) => cosine(policy) >= best - COSINE_TIE)
    .sort((a, b) => a.bytesPerToken - b.bytesPerToken)[0];
}
