import { text } from '@stillhouse/settings';
import { defineCommand } from '../command.ts';
import { carryOutSweep } from '../sweep/carry-out-sweep.ts';
import { shareInputs } from '../sweep/shared-inputs.ts';
import type { SweepFigures } from '../sweep/sweep-figures.ts';
import { readSweep, type SweepPlan } from '../sweep/sweep-plan.ts';
import { REPORT_FILES } from '../sweep/sweep-report.ts';
import { SWEEP_SETTINGS } from '../sweep/sweep-settings.ts';
import { printSweep } from '../sweep/sweep-table.ts';
import { printTable } from '../terminal/text-table.ts';

export const sweep = defineCommand({
  settings: { recipe: text('recipe of all runs; its key "sweep" says what differs', undefined), ...SWEEP_SETTINGS },
  argument: 'recipe',
  run: async ({ recipe }, context, { recipe: _, ...given }) => {
    const { plan, settings } = await readSweep(recipe!, given);
    const { figures, chosen, exitCode } = await shareInputs((shared) => carryOutSweep(plan, settings, context, shared));
    if (figures === undefined) {
      return { result: { out: plan.out, runs: listRuns(plan), chosen }, summary: printRuns(plan, chosen) };
    }
    return { result: figures, summary: printOutcome(figures), exitCode };
  },
});

const listRuns = ({ runs }: SweepPlan) => runs.map(({ name, overrides }) => ({ name, overrides }));

function printRuns({ runs }: SweepPlan, chosen: readonly string[]): string {
  const rows = runs.map(({ name, settings }) => [name, settings.out!, chosen.includes(name) ? 'yes' : 'no']);
  return printTable([['run', 'folder', "this process's"], ...rows]);
}

export function printOutcome(figures: SweepFigures): string {
  const failures = figures.runs.flatMap(({ name, failure }) =>
    failure === null ? [] : [`failed: ${name}: ${failure.message} [${failure.code}]`],
  );
  const page = `report: ${figures.out}/${REPORT_FILES.page}`;
  return [printSweep(figures), '* lowest held-out KL at T = 1 of its cache', ...failures, page].join('\n');
}
