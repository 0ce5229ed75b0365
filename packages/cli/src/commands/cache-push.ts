import { pushCache } from '@stillhouse/cache-remote';
import { printBytes, printCount } from '@stillhouse/report';
import { boolean, text } from '@stillhouse/settings';
import { defineCommand } from '../command-line/command.ts';
import { printPairs } from '../terminal/text-table.ts';
import { CONCURRENCY, openTransferDisplay } from '../terminal/transfer-display.ts';

export const cachePush = defineCommand({
  settings: {
    cache: text('folder of the cache', undefined),
    remote: text(
      'a folder, s3://BUCKET/PREFIX or hf://datasets/OWNER/NAME; behind # the name, main if left out',
      undefined,
    ),
    resend: boolean('send files that are there already too, to replace ones that went bad'),
    concurrency: CONCURRENCY,
  },
  argument: 'cache',
  secondArgument: 'remote',
  run: async ({ cache, remote, resend, concurrency }, context) => {
    const display = openTransferDisplay('cache push', context);
    try {
      const result = await pushCache(cache!, remote!, { resend, policy: { concurrency }, onProgress: display.show });
      const { formerDigest, digest } = result;
      return {
        result,
        summary: printPairs([
          ['remote', result.remote],
          ['name', result.name],
          ['digest', digest],
          ['before', formerDigest === null || formerDigest === digest ? undefined : formerDigest],
          ['sent', `${printCount(result.filesSent)} files, ${printBytes(result.bytesSent)}`],
          ['there already', `${printCount(result.filesPresent)} files, ${printBytes(result.bytesPresent)}`],
        ]),
      };
    } finally {
      display.stop();
    }
  },
});
