import { isStillhouseError, StillhouseError } from '@stillhouse/errors';
import { checkTraining, type SharedInputs } from '@stillhouse/student-trainer';
import { type Measurement, planMeasurements } from './measurements.ts';
import { type SweepPlan, type SweepRun, withSettings } from './sweep-plan.ts';

export interface CheckedRun {
  readonly run: SweepRun;
  readonly cacheDigest: string;
  readonly measurements: readonly Measurement[];
}

/**
 * Holds every run against its cache, its student and what its student will be measured on, before the first begins.
 * @throws StillhouseError the first that a run is refused with, naming it and the other runs that are refused
 */
export async function checkSweep(
  { runs, measurement }: SweepPlan,
  shared: Required<SharedInputs>,
): Promise<readonly CheckedRun[]> {
  const checked: CheckedRun[] = [];
  const refused: { readonly name: string; readonly error: StillhouseError }[] = [];
  for (const run of runs) {
    try {
      checked.push(await checkRun(run, measurement, shared));
    } catch (error) {
      if (!isStillhouseError(error)) throw error;
      refused.push({ name: run.name, error });
    }
  }
  const [first, ...others] = refused;
  if (first === undefined) return checked;
  const { report } = first.error;
  const more = others.length === 0 ? '' : `; refused too: ${others.map(({ name }) => name).join(', ')}`;
  throw new StillhouseError({
    ...report,
    where: `run ${first.name}, ${report.where}`,
    problem: `${report.problem}${more}`,
    cause: first.error,
  });
}

async function checkRun(
  run: SweepRun,
  measurement: SweepPlan['measurement'],
  shared: Required<SharedInputs>,
): Promise<CheckedRun> {
  // With evaluation while training or not: the held-out rows must be others than those it learns from.
  const { cacheDigest } = await checkTraining(
    withSettings(run.settings, { evalEvery: run.settings.evalEvery ?? 1 }),
    shared,
  );
  return { run, cacheDigest, measurements: await planMeasurements(run, measurement, shared) };
}
