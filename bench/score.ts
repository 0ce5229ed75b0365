/**
 * Teacher scoring tokens/s against transformers in one run: top 64 and log Z at T = 1, 2, 4 at every position.
 *   node --import tsx bench/score.ts MODEL_FOLDER ROWS.jsonl [--limit 16]
 * ROWS are data rows of any form. STILLHOUSE_PYTHON names a Python with torch and transformers. Also compares: the
 * largest difference of the eight best log-probabilities from float32 transformers.
 */
import { execFileSync } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { openSafetensors } from '@stillhouse/checkpoint';
import { resolveSettings } from '@stillhouse/settings';
import { openCache } from '@stillhouse/teacher-cache';
import { BUILD_SETTINGS, buildTeacherCache } from '@stillhouse/teacher-inference';

const here = new URL('.', import.meta.url).pathname;
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { limit: { type: 'string', default: '16' }, 'batch-tokens': { type: 'string', default: '1024' } },
});
const python = process.env.STILLHOUSE_PYTHON;
const [model, data] = positionals;
if (python === undefined || model === undefined || data === undefined) {
  console.error('usage: bench/score.ts MODEL_FOLDER ROWS.jsonl, with STILLHOUSE_PYTHON set; see bench/README.md');
  process.exit(2);
}
const folder = await mkdtemp(join(tmpdir(), 'bench-score-'));
try {
  const out = join(folder, 'cache');
  const settings = resolveSettings(BUILD_SETTINGS, {
    teacher: model,
    data,
    out,
    labels: ['topk'],
    positions: 'all',
    limit: Number(values.limit),
    threads: 2,
  });
  const startedAt = performance.now();
  const built = await buildTeacherCache(settings);
  const wallMs = performance.now() - startedAt;
  const cache = await openCache(out);
  const ids = join(folder, 'ids.jsonl');
  const lines: string[] = [];
  for await (const { row } of cache.rows(undefined, {})) lines.push(JSON.stringify({ input_ids: [...row.inputIds] }));
  await writeFile(ids, `${lines.join('\n')}\n`);
  const peer = (dtype: string) => {
    const file = join(folder, `${dtype}.safetensors`);
    const text = execFileSync(
      python,
      [
        `${here}peers/score_transformers.py`,
        model,
        ids,
        '--dtype',
        dtype,
        '--batch-tokens',
        values['batch-tokens'],
        '--out',
        file,
      ],
      { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'], maxBuffer: 1 << 28 },
    );
    return {
      file,
      ...(JSON.parse(text.trim().split('\n').at(-1)!) as { tokensPerSecond: number; peakRssBytes: number }),
    };
  };
  const [fp32, bf16] = [peer('fp32'), peer('bf16')];
  console.log(
    `${cache.rowCount} rows, ${built.tokens} tokens; ours took ${(wallMs / 1000).toFixed(1)} s with reading, ` +
      `hashing and writing\n`,
  );
  console.log('| | tokens/s | ours / theirs | peak memory, GB |\n|---|---|---|---|');
  for (const [name, { tokensPerSecond, peakRssBytes }] of [
    ['Stillhouse float32', built],
    ['transformers fp32', fp32],
    ['transformers bf16', bf16],
  ] as const) {
    console.log(
      `| ${name} | ${tokensPerSecond.toFixed(0)} | ${(built.tokensPerSecond / tokensPerSecond).toFixed(2)} | ` +
        `${(peakRssBytes / 1e9).toFixed(2)} |`,
    );
  }
  const theirs = await openSafetensors(fp32.file);
  console.log(
    `\ntensors of the peer: ` +
      `${[...theirs.tensors.values()].map(({ name, shape }) => `${name} [${shape.join(', ')}]`).join(', ')}`,
  );
  const width = theirs.tensors.get('topk_ids')!.shape.at(-1)!;
  const [peerIds, peerLogprobs] = [await theirs.readInt('topk_ids'), await theirs.read('topk_logprobs', 'float32')];
  let [position, worst, sameTop1, swapped] = [0, 0, 0, 0];
  for (let row = 0; row < cache.rowCount; row++) {
    const { topk, positions } = await cache.readRow(row);
    for (let p = 0; p < positions.length; p++, position++) {
      const ours = new Map<number, number>();
      for (let i = 0; i < 64; i++) ours.set(topk!.ids[p * 64 + i]!, topk!.logprobs[p * 64 + i]!);
      if (Number(peerIds[position * width]) === topk!.ids[p * 64]) sameTop1 += 1;
      for (let i = 0; i < 8; i++) {
        const mine = ours.get(Number(peerIds[position * width + i]));
        if (mine === undefined) swapped += 1;
        else worst = Math.max(worst, Math.abs(mine - peerLogprobs[position * width + i]!));
      }
    }
  }
  console.log(
    `top 8 of ${position} positions: largest |Δ logprob| ${worst.toExponential(2)}, ${swapped} ids not among ` +
      `our 64, same best id at ${sameTop1}`,
  );
  await cache.close();
} finally {
  await rm(folder, { recursive: true, force: true });
}
