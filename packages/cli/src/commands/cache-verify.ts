import { printBytes, printCount } from '@stillhouse/report';
import { text } from '@stillhouse/settings';
import { verifyCache } from '@stillhouse/teacher-cache';
import { defineCommand } from '../command-line/command.ts';
import { EXIT_FAILURE, EXIT_SUCCESS } from '../failure.ts';
import { printPairs } from '../terminal/text-table.ts';

export const cacheVerify = defineCommand({
  settings: { cache: text('folder of the cache', undefined) },
  argument: 'cache',
  run: async ({ cache }) => {
    const report = await verifyCache(cache!);
    const found = report.problems.map(({ file, problem }) => `${file}: ${problem}`);
    const summary = printPairs([
      ['result', report.ok ? 'no problem found' : `${found.length} ${found.length === 1 ? 'problem' : 'problems'}`],
      ['complete', report.complete ? 'yes' : 'no'],
      ['digest', report.digest ?? undefined],
      ['checked', `${printCount(report.filesChecked)} files, ${printBytes(report.bytesChecked)}`],
      ['rows', `${printCount(report.rowsChecked)} with ${printCount(report.positionsChecked)} label positions`],
    ]);
    return {
      result: report,
      summary: [...found, summary].join('\n'),
      exitCode: report.ok ? EXIT_SUCCESS : EXIT_FAILURE,
    };
  },
});
