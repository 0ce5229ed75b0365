import { checkSweep } from './check-sweep.ts';
import { chooseRuns } from './choose-runs.ts';
import { runSweep } from './run-sweep.ts';
import type { SweepWork } from './sweep-events.ts';
import type { SweepFigures } from './sweep-figures.ts';
import { recordSweep } from './sweep-folder.ts';
import type { SweepPlan } from './sweep-plan.ts';
import { writeSweepReport } from './sweep-report.ts';
import type { ShareSettings } from './sweep-settings.ts';

/** What a sweep came to. */
export interface SweepOutcome {
  /** Undefined after a dry run. */
  readonly figures: SweepFigures | undefined;
  /** The runs that this process was to work on. */
  readonly chosen: readonly string[];
  /** Whether any of those has failed. */
  readonly hasFailed: boolean;
}

/**
 * Checks all runs of a sweep, works on this process's share of them and writes the report, again after every run.
 * @throws StillhouseError those of `checkSweep`, `chooseRuns`, `recordSweep` and `runSweep`
 */
export async function carryOutSweep(plan: SweepPlan, share: ShareSettings, work: SweepWork): Promise<SweepOutcome> {
  const { events, shared } = work;
  const names = chooseRuns(plan.runs, share, events.onPartition).map(({ name }) => name);
  events.onCheck?.(plan.runs.length);
  const checked = await checkSweep(plan, shared);
  if (share.dryRun) return { figures: undefined, chosen: names, hasFailed: false };
  await recordSweep(plan, new Map(checked.map(({ run, cacheDigest }) => [run.name, cacheDigest])));
  events.onBegin?.(names.length, plan.runs.length);
  const runs = checked.filter(({ run }) => names.includes(run.name));
  await runSweep(runs, work, async () => {
    await writeSweepReport(plan.out);
  });
  const figures = await writeSweepReport(plan.out);
  const hasFailed = figures.runs.some(({ name, state }) => state === 'failed' && names.includes(name));
  return { figures, chosen: names, hasFailed };
}
