import { listRemote } from '@stillhouse/cache-remote';
import { printBytes, printCount } from '@stillhouse/report';
import { text } from '@stillhouse/settings';
import { defineCommand } from '../command-line/command.ts';
import { printTable } from '../terminal/text-table.ts';

/** So much of a digest tells caches apart for the eye; all of it is in the JSON. */
const SHOWN_DIGITS = 12;

export const cacheLs = defineCommand({
  settings: {
    remote: text('a folder, https://HOST/PATH, s3://BUCKET/PREFIX or hf://datasets/OWNER/NAME', undefined),
  },
  argument: 'remote',
  run: async ({ remote }) => {
    const caches = await listRemote(remote!);
    const rows = caches.map(({ names, digest, rowCount, sizeBytes, teacher, groups }) => [
      names.length === 0 ? '-' : names.join(','),
      digest.slice(0, SHOWN_DIGITS),
      printCount(rowCount),
      printBytes(sizeBytes),
      teacher ?? '-',
      groups.map(({ group }) => group).join(','),
    ]);
    return {
      result: { remote, caches },
      summary:
        rows.length === 0
          ? 'no caches'
          : printTable([['name', 'digest', 'rows', 'size', 'teacher', 'groups'], ...rows]),
    };
  },
});
