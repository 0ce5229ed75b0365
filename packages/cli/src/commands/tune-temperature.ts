import { join } from 'node:path';
import {
  explainChoice,
  type SweepPlan,
  shareInputs,
  TEMPERATURE_FILES,
  type TemperatureChoice,
  TUNING_SETTINGS,
  tabulateTemperatures,
  tuneTemperature as tune,
} from '@stillhouse/experiments';
import { defineCommand } from '../command-line/command.ts';
import { openInterruption } from '../command-line/interruption.ts';
import { openSweepDisplay } from '../terminal/sweep-display.ts';
import { printTable } from '../terminal/text-table.ts';
import { printOutcome } from './sweep.ts';

export const tuneTemperature = defineCommand({
  settings: TUNING_SETTINGS,
  run: async (settings, context) => {
    const interruption = openInterruption(context, 'sweep');
    const events = openSweepDisplay(context, interruption.begin);
    const { plan, temperatures, figures, choice, hasFailed } = await shareInputs((shared) =>
      tune(settings, { shared, events, stopSignal: interruption.stopSignal }, (tried) =>
        context.note(`tune-temperature: T = ${tried.join(', ')}, seeds ${settings.seeds.join(', ')}`),
      ),
    );
    if (figures === undefined) {
      const runs = plan.runs.map(({ name }) => name);
      return { result: { temperatures, runs }, summary: runs.join('\n') };
    }
    const summary = choice === null ? printOutcome(figures) : printChoice(plan, choice);
    return { result: { choice, ...figures }, summary, exitCode: interruption.exitCode(!hasFailed) };
  },
});

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
