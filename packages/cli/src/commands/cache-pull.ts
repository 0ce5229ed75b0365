import { pullCache } from '@stillhouse/cache-remote';
import { printBytes, printCount } from '@stillhouse/report';
import { integer, list, text } from '@stillhouse/settings';
import { defineCommand } from '../command-line/command.ts';
import { printPairs } from '../terminal/text-table.ts';
import { CONCURRENCY, openTransferDisplay } from '../terminal/transfer-display.ts';

const isGroup = (value: unknown): value is string => typeof value === 'string' && value !== '';

export const cachePull = defineCommand({
  settings: {
    remote: text(
      'a folder, https://HOST/PATH, s3://BUCKET/PREFIX or hf://datasets/OWNER/NAME; behind # a name or digest, main if left out',
      undefined,
    ),
    cache: text('folder for the cache', undefined),
    groups: list(
      'groups to fetch; rows and tokenizer come always; left out: all',
      isGroup,
      'names of groups, such as topk,hidden-final',
      undefined,
    ),
    maxBytes: integer('refuse a cache whose wanted files take more; left out: what the disk has', undefined, {
      min: 1,
    }),
    concurrency: CONCURRENCY,
  },
  argument: 'remote',
  secondArgument: 'cache',
  run: async ({ remote, cache, groups, maxBytes, concurrency }, context) => {
    const display = openTransferDisplay('cache pull', context);
    try {
      const result = await pullCache(remote!, cache!, {
        ...(groups === undefined ? {} : { groups }),
        ...(maxBytes === undefined ? {} : { maxBytes }),
        policy: { concurrency },
        onProgress: display.show,
      });
      const { formerDigest, digest, omittedGroups } = result;
      return {
        result,
        summary: printPairs([
          ['cache', result.folder],
          ['name', result.name],
          ['digest', digest],
          ['before', formerDigest === null || formerDigest === digest ? undefined : formerDigest],
          ['groups', result.groups.join(', ')],
          ['left out', omittedGroups.length === 0 ? undefined : omittedGroups.join(', ')],
          ['fetched', `${printCount(result.filesFetched)} files, ${printBytes(result.bytesFetched)}`],
          ['here already', `${printCount(result.filesPresent)} files`],
        ]),
      };
    } finally {
      display.stop();
    }
  },
});
