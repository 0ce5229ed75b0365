/**
 * How long steps wait for their labels: trains a student from a cache with each kind of labels that it has, from the
 * folder and from a web server that sends so many megabytes a second, into an empty local folder. Wait of the first
 * step, and the longest and the mean of the others, beside the mean time of a step.
 *   node --import tsx bench/data-wait.ts CACHE STUDENT [--steps 12] [--batch-tokens 512] [--prefetch 1,2,4]
 *     [--megabytes 20]
 */
import { createReadStream } from 'node:fs';
import { mkdtemp, rm, stat } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { pushCache } from '@stillhouse/cache-remote';
import { resolveSettings } from '@stillhouse/settings';
import { readStepLog, type StepMetrics, TRAINING_SETTINGS, trainStudent } from '@stillhouse/student-trainer';
import { openCache } from '@stillhouse/teacher-cache';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    steps: { type: 'string', default: '12' },
    'batch-tokens': { type: 'string', default: '512' },
    prefetch: { type: 'string', default: '1,2,4' },
    megabytes: { type: 'string', default: '20' },
  },
});
const [path, student] = positionals as [string, string];
const cache = await openCache(path);
const { topk, hidden, head } = cache.description.labels;
await cache.close();
const hasFull = head && hidden?.layers.includes('final') === true;
const kinds: readonly (readonly [string, Record<string, unknown>])[] = [
  ...(topk === null ? [] : [['topk', { labels: 'topk' }] as const]),
  ...(hasFull ? [[`full ${hidden.dtype}`, { labels: 'full', refine: 'never' }] as const] : []),
  ...(hasFull && topk !== null
    ? [[`full ${hidden.dtype}, refined`, { labels: 'full', refine: 'always' }] as const]
    : []),
];

const work = await mkdtemp(join(tmpdir(), 'stillhouse-wait-'));
const bytesPerSecond = 1e6 * Number(values.megabytes);
const server = createServer(async (request, response) => {
  const file = join(work, 'remote', decodeURIComponent(request.url!.split('?')[0]!));
  const found = await stat(file).catch(() => undefined);
  if (!found?.isFile()) return void response.writeHead(404).end();
  const from = Number(/bytes=(\d+)-/.exec(request.headers.range ?? '')?.[1] ?? 0);
  response.writeHead(from === 0 ? 200 : 206, {
    'content-length': found.size - from,
    ...(from === 0 ? {} : { 'content-range': `bytes ${from}-${found.size - 1}/${found.size}` }),
  });
  if (request.method === 'HEAD') return void response.end();
  for await (const chunk of createReadStream(file, { start: from })) {
    response.write(chunk);
    await sleep((1000 * (chunk as Buffer).length) / bytesPerSecond);
  }
  response.end();
});
try {
  await pushCache(path, join(work, 'remote'));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  let run = 0;
  console.log('labels | from | ahead | first wait, ms | longest of the others | mean of the others | mean step, ms');
  for (const [name, labels] of kinds) {
    for (const [from, location] of [['folder', path] as const, [`http, ${values.megabytes} MB/s`, url] as const]) {
      for (const prefetchSteps of values.prefetch.split(',').map(Number)) {
        const out = join(work, `run-${run++}`);
        process.env.STILLHOUSE_CACHE_DIR = `${out}-files`;
        const given = { cache: location, student, out, ...labels, prefetchSteps, threads: 1 };
        const sizes = { steps: Number(values.steps), batchTokens: Number(values['batch-tokens']) };
        await trainStudent(resolveSettings(TRAINING_SETTINGS, { ...given, ...sizes }));
        const metrics = await readStepLog<StepMetrics>(out, 'metrics.jsonl');
        const [first, ...others] = metrics.map(({ dataWaitMs }) => dataWaitMs);
        const mean = others.reduce((sum, ms) => sum + ms, 0) / others.length;
        const stepMs = metrics.at(-1)!.elapsedMs / metrics.length;
        console.log(
          [name, from, prefetchSteps, ...[first!, Math.max(...others), mean, stepMs].map((ms) => ms.toFixed(1))].join(
            ' | ',
          ),
        );
        for (const folder of [out, `${out}-files`]) await rm(folder, { recursive: true, force: true });
      }
    }
  }
} finally {
  server.close();
  await rm(work, { recursive: true, force: true });
}
