import { writeSweepReport } from '@stillhouse/experiments';
import { text } from '@stillhouse/settings';
import { defineCommand } from '../command-line/command.ts';
import { printOutcome } from './sweep.ts';

export const sweepReport = defineCommand({
  settings: { out: text('folder of the sweep', undefined) },
  argument: 'out',
  run: async ({ out }) => {
    const figures = await writeSweepReport(out!);
    return { result: figures, summary: printOutcome(figures) };
  },
});
