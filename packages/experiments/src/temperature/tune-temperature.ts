import { join } from 'node:path';
import { writeFileAtomically } from '@stillhouse/durable-files';
import { writeReport } from '@stillhouse/report';
import { carryOutSweep } from '../sweep/carry-out-sweep.ts';
import { readRunFiles } from '../sweep/run-folder.ts';
import type { SweepWork } from '../sweep/sweep-events.ts';
import type { SweepFigures } from '../sweep/sweep-figures.ts';
import type { SweepPlan } from '../sweep/sweep-plan.ts';
import { chooseTemperature, type TemperatureChoice, type TriedTemperature } from './choice.ts';
import { planTuning, type TuningSettings } from './plan-tuning.ts';
import { describeTemperatures, TEMPERATURE_FILES } from './report.ts';

/** What a tuning came to. */
export interface Tuning {
  readonly plan: SweepPlan;
  readonly temperatures: readonly number[];
  /** Undefined after a dry run. */
  readonly figures: SweepFigures | undefined;
  /** Null where the sweep was interrupted, or next to nothing has come to its end. */
  readonly choice: TemperatureChoice | null;
  readonly hasFailed: boolean;
}

/**
 * Trains short runs at several temperatures, measures them and says which is best; the choice and its page are written.
 * @param onPlan told of the temperatures before any run is checked
 * @throws StillhouseError those of `planTuning` and `carryOutSweep`
 */
export async function tuneTemperature(
  settings: TuningSettings,
  work: SweepWork,
  onPlan?: (temperatures: readonly number[]) => void,
): Promise<Tuning> {
  const plan = await planTuning(settings, work.shared);
  const temperatures = [...new Set(plan.runs.map((run) => run.settings.temperature))];
  onPlan?.(temperatures);
  const share = { only: undefined, partition: 'none', dryRun: settings.dryRun };
  const { figures, hasFailed } = await carryOutSweep(plan, share, work);
  const choice = figures === undefined ? null : await compareStudents(plan, figures);
  return { plan, temperatures, figures, choice, hasFailed };
}

async function compareStudents(plan: SweepPlan, figures: SweepFigures): Promise<TemperatureChoice | null> {
  const tried = await readTried(plan);
  if (figures.runs.some(({ state }) => state !== 'finished' && state !== 'failed') || tried.length < 2) return null;
  const choice = chooseTemperature(tried);
  await writeFileAtomically(join(plan.out, TEMPERATURE_FILES.json), `${JSON.stringify(choice, null, 2)}\n`);
  await writeReport(describeTemperatures(plan.out, choice), join(plan.out, TEMPERATURE_FILES.page));
  return choice;
}

/** Temperatures whose students are all there. */
async function readTried({ runs }: SweepPlan): Promise<readonly TriedTemperature[]> {
  const tried = new Map<number, TriedTemperature['students'][number][]>();
  for (const { settings } of runs) {
    const { kd, record } = await readRunFiles(settings.out!);
    const students = tried.get(settings.temperature) ?? [];
    tried.set(settings.temperature, students);
    if (kd !== undefined && record.failure === null) students.push(kd.records);
  }
  const seeds = Math.max(...[...tried.values()].map(({ length }) => length));
  return [...tried]
    .filter(([, students]) => students.length === seeds)
    .map(([temperature, students]) => ({ temperature, students }))
    .sort((a, b) => a.temperature - b.temperature);
}
