import { printCount } from '@stillhouse/report';
import { REPAIR_SETTINGS, type RepairResult, repairTeacherCache } from '@stillhouse/teacher-inference';
import { defineCommand } from '../command-line/command.ts';
import { EXIT_FAILURE, EXIT_SUCCESS } from '../failure.ts';
import { printPairs } from '../terminal/text-table.ts';

export const cacheRepair = defineCommand({
  settings: REPAIR_SETTINGS,
  argument: 'cache',
  run: async (settings, context) => {
    const result = await repairTeacherCache(settings, {
      onDamage: (damaged) => context.note(`cache repair: ${printCount(damaged.length)} files are damaged or missing`),
    });
    return { result, summary: printResult(result), exitCode: result.report.ok ? EXIT_SUCCESS : EXIT_FAILURE };
  },
});

function printResult({ repaired, report, cacheDigest }: RepairResult): string {
  const left = report.problems.map(({ file, problem }) => `${file}: ${problem}`);
  const pairs = printPairs([
    ['repaired', repaired.length === 0 ? 'nothing was damaged' : `${printCount(repaired.length)} files`],
    ['result', report.ok ? 'no problem found' : `${left.length} ${left.length === 1 ? 'problem' : 'problems'} left`],
    ['digest', cacheDigest],
  ]);
  return [...repaired, ...left, pairs].join('\n');
}
