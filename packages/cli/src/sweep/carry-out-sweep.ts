import { printCount } from '@stillhouse/report';
import type { SharedInputs } from '@stillhouse/student-trainer';
import type { CommandContext } from '../command.ts';
import { EXIT_FAILURE, EXIT_SUCCESS, exitCodeOfSignal } from '../failure.ts';
import { checkSweep } from './check-sweep.ts';
import { chooseRuns } from './choose-runs.ts';
import { runSweep } from './run-sweep.ts';
import type { SweepFigures } from './sweep-figures.ts';
import { recordSweep } from './sweep-folder.ts';
import type { SweepPlan } from './sweep-plan.ts';
import { writeSweepReport } from './sweep-report.ts';
import type { ShareSettings } from './sweep-settings.ts';

export interface SweepOutcome {
  /** Undefined after a dry run. */
  readonly figures: SweepFigures | undefined;
  /** The runs that this process was to work on. */
  readonly chosen: readonly string[];
  readonly exitCode: number;
}

/**
 * Checks all runs of a sweep, works on this process's share of them and writes the report, again after every run.
 * @throws StillhouseError those of `checkSweep`, `chooseRuns`, `recordSweep` and `runSweep`
 */
export async function carryOutSweep(
  plan: SweepPlan,
  share: ShareSettings,
  context: CommandContext,
  shared: Required<SharedInputs>,
): Promise<SweepOutcome> {
  const names = chooseRuns(plan.runs, share, context.note).map(({ name }) => name);
  context.note(`sweep: checking ${printCount(plan.runs.length)} runs`);
  const checked = await checkSweep(plan, shared);
  if (share.dryRun) return { figures: undefined, chosen: names, exitCode: EXIT_SUCCESS };
  await recordSweep(plan, new Map(checked.map(({ run, cacheDigest }) => [run.name, cacheDigest])));
  if (names.length < plan.runs.length) {
    context.note(`sweep: ${printCount(names.length)} of ${printCount(plan.runs.length)} runs are this process's`);
  }
  const stop = new AbortController();
  let stoppedBy: NodeJS.Signals | undefined;
  context.onInterrupt((signal) => {
    stoppedBy = signal;
    stop.abort();
    context.note(`sweep: ${signal}, stopping after this step and saving; once more to end at once`);
  });
  const runs = checked.filter(({ run }) => names.includes(run.name));
  const onRun = async () => {
    await writeSweepReport(plan.out);
  };
  await runSweep(runs, shared, context, { onRun, stopSignal: stop.signal });
  const figures = await writeSweepReport(plan.out);
  const hasFailed = figures.runs.some(({ name, state }) => state === 'failed' && names.includes(name));
  const exitCode = stoppedBy !== undefined ? exitCodeOfSignal(stoppedBy) : hasFailed ? EXIT_FAILURE : EXIT_SUCCESS;
  return { figures, chosen: names, exitCode };
}
