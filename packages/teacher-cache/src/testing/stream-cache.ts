/** Streams FOLDER twice in a process of its own and prints how far its memory grew. */
import { openCache } from '../index.ts';

const cache = await openCache(process.argv[2]!, { batchCacheBytes: 16 << 20 });
const start = process.memoryUsage().rss;
let peak = start;
let rows = 0;
let sum = 0;
for (let pass = 0; pass < 2; pass++) {
  for await (const { hidden } of cache.rows()) {
    for (const value of hidden!.get('final')!.values) sum += value;
    rows++;
    peak = Math.max(peak, process.memoryUsage().rss);
  }
}
await cache.close();
console.log(JSON.stringify({ rows, sum, growthBytes: peak - start }));
