/**
 * Streams FOLDER, twice or as often as the second argument says, in a process of its own and prints what memory it
 * took.
 */
import { openCache } from '../index.ts';

const [folder, passes = '2'] = process.argv.slice(2);
const cache = await openCache(folder!, { batchCacheBytes: 16 << 20 });
const start = process.memoryUsage().rss;
let peak = start;
let rows = 0;
let sum = 0;
for (let pass = 0; pass < Number(passes); pass++) {
  for await (const { hidden } of cache.rows()) {
    for (const value of hidden!.get('final')!.values) sum += value;
    rows++;
    peak = Math.max(peak, process.memoryUsage().rss);
  }
}
await cache.close();
console.log(JSON.stringify({ rows, sum, growthBytes: peak - start, peakBytes: peak }));
