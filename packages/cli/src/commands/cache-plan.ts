import { type CachePlan, PLAN_SETTINGS, planCache } from '@stillhouse/experiments';
import { printBytes, printCount, printSignificant } from '@stillhouse/report';
import { defineCommand } from '../command-line/command.ts';
import { printPairs, printTable } from '../terminal/text-table.ts';

export const cachePlan = defineCommand({
  settings: PLAN_SETTINGS,
  run: async (settings, context) => {
    const result = await planCache(settings, { onStage: (stage) => context.note(`cache plan: ${stage}`) });
    return { result, summary: printPlan(result) };
  },
});

function printPlan(plan: CachePlan): string {
  const { pilot, data, policies, recommended, recipe } = plan;
  const { budget, students, temperatures, temperature } = recipe;
  const chosen = policies.find(({ name }) => name === recommended);
  const table = printTable([
    [
      'policy',
      'B/token',
      'whole cache',
      ...temperatures.map((T) => `cos T=${T}`),
      ...temperatures.map((T) => `grad T=${T}`),
    ],
    ...[...policies]
      .sort((a, b) => a.bytesPerToken - b.bytesPerToken)
      .map((policy) => [
        `${policy.name}${policy.name === recommended ? ' *' : ''}`,
        policy.bytesPerToken.toFixed(0),
        printBytes(policy.totalBytes),
        ...temperatures.map((T) => policy.at[String(T)]?.meanGradientCosine.toFixed(5) ?? '-'),
        ...temperatures.map((T) => policy.at[String(T)]?.gradientError.toFixed(4) ?? '-'),
      ]),
  ]);
  const pairs = printPairs([
    ['data', `${printCount(data.rows)} rows, labels at ${printCount(data.positions)} positions`],
    ['pilot', `${printCount(pilot.rows)} rows, ${printCount(pilot.measuredPositions)} of their positions measured`],
    ['budget', `${printSignificant(budget)} bytes of labels a token`],
    ['recommended', chosen === undefined ? 'nothing fits the budget' : chosen.name],
    ['build it with', chosen?.flags],
    ['train with', chosen === undefined ? undefined : `--labels ${chosen.labels} --temperature ${temperature}`],
    [
      `${printCount(students)} student${students === 1 ? '' : 's'} read`,
      chosen === undefined ? undefined : printBytes(chosen.readBytes),
    ],
  ]);
  return `${table}\n\n${pairs}`;
}
