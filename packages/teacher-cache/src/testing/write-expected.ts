/** Writes what is in a cache beside it: CACHE to CACHE.expected.json. */
import { writeFile } from 'node:fs/promises';
import { openCache } from '../index.ts';
import { dumpCache } from './dump-cache.ts';

const folder = process.argv[2]!;
const cache = await openCache(folder);
await writeFile(`${folder}.expected.json`, `${JSON.stringify(await dumpCache(cache), null, 1)}\n`);
await cache.close();
