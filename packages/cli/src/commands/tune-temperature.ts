import { join } from 'node:path';
import { writeFileAtomically } from '@stillhouse/durable-files';
import { writeReport } from '@stillhouse/report';
import { defineCommand } from '../command.ts';
import { carryOutSweep } from '../sweep/carry-out-sweep.ts';
import { readRunFiles } from '../sweep/run-folder.ts';
import { shareInputs } from '../sweep/shared-inputs.ts';
import type { SweepPlan } from '../sweep/sweep-plan.ts';
import { chooseTemperature, type TemperatureChoice, type TriedTemperature } from '../sweep/temperature-choice.ts';
import {
  describeTemperatures,
  explainChoice,
  TEMPERATURE_FILES,
  tabulateTemperatures,
} from '../sweep/temperature-report.ts';
import { planTuning, TUNING_SETTINGS } from '../sweep/temperature-settings.ts';
import { printTable } from '../terminal/text-table.ts';
import { printOutcome } from './sweep.ts';

export const tuneTemperature = defineCommand({
  settings: TUNING_SETTINGS,
  run: (settings, context) =>
    shareInputs(async (shared) => {
      const plan = await planTuning(settings, shared);
      const temperatures = [...new Set(plan.runs.map((run) => run.settings.temperature))];
      context.note(`tune-temperature: T = ${temperatures.join(', ')}, seeds ${settings.seeds.join(', ')}`);
      const share = { only: undefined, partition: 'none', dryRun: settings.dryRun };
      const { figures, exitCode } = await carryOutSweep(plan, share, context, shared);
      if (figures === undefined) {
        const lines = plan.runs.map(({ name }) => name);
        return { result: { temperatures, runs: lines }, summary: lines.join('\n') };
      }
      const tried = await readTried(plan);
      // Interrupted, or next to nothing has come to its end.
      if (figures.runs.some(({ state }) => state !== 'finished' && state !== 'failed') || tried.length < 2) {
        return { result: { choice: null, ...figures }, summary: printOutcome(figures), exitCode };
      }
      const choice = chooseTemperature(tried);
      await writeFileAtomically(join(plan.out, TEMPERATURE_FILES.json), `${JSON.stringify(choice, null, 2)}\n`);
      await writeReport(describeTemperatures(plan.out, choice), join(plan.out, TEMPERATURE_FILES.page));
      return { result: { choice, ...figures }, summary: printChoice(plan, choice), exitCode };
    }),
});

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

function printChoice({ out, runs }: SweepPlan, choice: TemperatureChoice): string {
  const failed = runs
    .map(({ settings }) => settings.temperature)
    .filter((t) => !choice.temperatures.some(({ temperature }) => temperature === t));
  return [
    printTable(tabulateTemperatures(choice)),
    explainChoice(choice),
    ...(failed.length === 0 ? [] : [`failed, and left out: T = ${[...new Set(failed)].join(', ')}`]),
    `plot: ${join(out, TEMPERATURE_FILES.page)}`,
  ].join('\n');
}
