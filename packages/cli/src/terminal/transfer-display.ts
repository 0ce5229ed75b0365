import type { TransferProgress } from '@stillhouse/cache-remote';
import { printBytes } from '@stillhouse/report';
import { integer } from '@stillhouse/settings';
import type { CommandContext } from '../command-line/command.ts';
import type { Progress } from './progress.ts';

/** The setting that push and pull share. */
export const CONCURRENCY = integer('transfers that go on at a time', 8, { min: 1, max: 64 });

/** Shows a transfer as it goes, once there is something to transfer. */
export function openTransferDisplay(label: string, context: CommandContext) {
  let progress: Progress | undefined;
  return {
    show: ({ files, totalFiles, bytes, totalBytes }: TransferProgress) => {
      if (totalBytes === 0) return;
      progress ??= context.openProgress({
        label,
        unit: 'bytes',
        total: totalBytes,
        printSpeed: (perSecond) => `${printBytes(perSecond)}/s`,
      });
      // What failed and was sent again counts twice.
      const done = Math.min(bytes, totalBytes);
      progress.update({ done, pace: { tokens: done }, note: `file ${files}/${totalFiles}` });
    },
    stop: () => progress?.stop(),
  };
}
