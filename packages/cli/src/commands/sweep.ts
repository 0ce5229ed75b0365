import {
  carryOutSweep,
  REPORT_FILES,
  readSweep,
  SWEEP_SETTINGS,
  type SweepFigures,
  type SweepPlan,
  shareInputs,
  tabulateSweep,
} from '@stillhouse/experiments';
import { text } from '@stillhouse/settings';
import { defineCommand } from '../command-line/command.ts';
import { openInterruption } from '../command-line/interruption.ts';
import { openSweepDisplay } from '../terminal/sweep-display.ts';
import { printTable } from '../terminal/text-table.ts';

export const sweep = defineCommand({
  settings: { recipe: text('recipe of all runs; its key "sweep" says what differs', undefined), ...SWEEP_SETTINGS },
  argument: 'recipe',
  run: async ({ recipe }, context, { recipe: _, ...given }) => {
    const { plan, settings } = await readSweep(recipe!, given);
    const interruption = openInterruption(context, 'sweep');
    const events = openSweepDisplay(context, interruption.begin);
    const { figures, chosen, hasFailed } = await shareInputs((shared) =>
      carryOutSweep(plan, settings, { shared, events, stopSignal: interruption.stopSignal }),
    );
    if (figures === undefined) {
      return { result: { out: plan.out, runs: listRuns(plan), chosen }, summary: printRuns(plan, chosen) };
    }
    return { result: figures, summary: printOutcome(figures), exitCode: interruption.exitCode(!hasFailed) };
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

/** For a terminal; a run's name says what it sets. */
function printSweep(figures: SweepFigures): string {
  const { columns, rows } = tabulateSweep({ ...figures, differing: [] });
  return printTable([columns, ...rows.map((row) => row.map((cell) => cell ?? '–'))]);
}
