/**
 * Fidelity for bytes on a real pair: every way to store labels that `cache plan` tries, and DistillKit's own packing of
 * the same positions, held against the teacher's exact distribution as a student sees it.
 *   node --import tsx bench/cache-fidelity.ts TEACHER STUDENT ROWS.jsonl [--pilot-positions 8000] [--positions 400]
 * STILLHOUSE_PYTHON names a Python with torch, STILLHOUSE_DISTILLKIT a clone of github.com/arcee-ai/DistillKit; without
 * them its lines are left out, and that is said. Cosine and error as `cache quality` has them: the cosine is the mean
 * over positions, the error pooled.
 */
import { execFileSync } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { PLAN_SETTINGS, planCache, type TriedPolicy } from '@stillhouse/experiments';
import { resolveSettings } from '@stillhouse/settings';
import type { CacheDescription, LabelledRow, TopKLabels } from '@stillhouse/teacher-cache';

const here = new URL('.', import.meta.url).pathname;
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    'pilot-positions': { type: 'string', default: '8000' },
    positions: { type: 'string', default: '400' },
  },
});
const [teacher, student, data] = positionals;
if (teacher === undefined || student === undefined || data === undefined) {
  console.error('usage: bench/cache-fidelity.ts TEACHER STUDENT ROWS.jsonl; see bench/README.md');
  process.exit(2);
}
const python = process.env.STILLHOUSE_PYTHON;
const distillKit = process.env.STILLHOUSE_DISTILLKIT;
const folder = await mkdtemp(join(tmpdir(), 'cache-fidelity-'));

interface Peer {
  readonly name: string;
  readonly k: number;
  readonly bytesPerToken: number;
  readonly klNats: number;
}

/** DistillKit's labels of the measured rows, packed and read back by its own code, in both ways to train on them. */
async function packWithDistillKit(
  measured: readonly LabelledRow[],
  description: CacheDescription,
): Promise<readonly TriedPolicy[]> {
  if (python === undefined || distillKit === undefined) {
    console.error('STILLHOUSE_PYTHON or STILLHOUSE_DISTILLKIT is not set: no lines of DistillKit');
    return [];
  }
  const stored = description.labels.topk!.k;
  const split = <T>(values: ArrayLike<T>) =>
    Array.from({ length: values.length / stored }, (_, i) => Array.from(values).slice(i * stored, (i + 1) * stored));
  const all = (read: (topk: TopKLabels) => ArrayLike<number>) => measured.flatMap(({ topk }) => split(read(topk!)));
  const rows = join(folder, 'rows.json');
  const vocabulary = description.teacher!.vocabSize;
  await writeFile(
    rows,
    JSON.stringify({ vocabulary, ids: all(({ ids }) => ids), logprobs: all((topk) => topk.logprobs) }),
  );
  const script = join(here, 'peers/distillkit_packing.py');
  const said = execFileSync(python, [script, rows, '--distillkit', distillKit, '--raw', folder], { encoding: 'utf8' });
  const { configurations } = JSON.parse(said) as { readonly configurations: readonly Peer[] };
  const policies: TriedPolicy[] = [];
  for (const { name, k, bytesPerToken, klNats } of configurations) {
    console.error(`DistillKit ${name}: ${bytesPerToken} bytes, its own KL over ${k} entries ${klNats.toFixed(4)} nats`);
    const bytes = await readFile(join(folder, `${name}.f32`));
    const decoded = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
    let position = 0;
    const relabelled = measured.map(({ row, positions, topk }): LabelledRow => {
      const count = positions.length;
      const logprobs = decoded.slice(position * k, (position + count) * k);
      position += count;
      const ids = Int32Array.from({ length: count * k }, (_, i) => topk!.ids[Math.floor(i / k) * stored + (i % k)]!);
      return { row, positions, topk: { counts: new Int32Array(count).fill(k), ids, logprobs, logZ: topk!.logZ } };
    });
    const labels = { topk: { k, temperatures: description.labels.topk!.temperatures }, hidden: null, head: false };
    for (const mode of ['topk bucket', 'topk renormalise']) {
      const title = `DistillKit ${name} (k=${k}), ${mode.slice(5)}`;
      policies.push({
        name: title,
        flags: '',
        description: { ...description, labels },
        rows: relabelled,
        bytesPerToken,
        mode,
      });
    }
  }
  return policies;
}

try {
  const settings = resolveSettings(PLAN_SETTINGS, {
    teacher,
    student,
    data,
    pilotPositions: Number(values['pilot-positions']),
    positionsLimit: Number(values.positions),
  });
  const plan = await planCache(settings, { onStage: (stage) => console.error(stage), addPolicies: packWithDistillKit });
  const { pilot, policies } = plan;
  console.log(`${pilot.measuredPositions} positions of ${pilot.rows} rows, codebooks fitted to the others\n`);
  const temperatures = settings.temperatures.map(String);
  console.log(`| stored | B/token |${temperatures.map((T) => ` T=${T} grad / cos / KL |`).join('')}`);
  console.log(`|---|---|${temperatures.map(() => '---|').join('')}`);
  for (const { name, bytesPerToken, at } of [...policies].sort((a, b) => a.bytesPerToken - b.bytesPerToken)) {
    const cells = temperatures.map((T) => {
      const figures = at[T];
      if (figures === undefined) return ' – |';
      const { gradientError, meanGradientCosine, divergence } = figures;
      return (
        ` ${gradientError.toPrecision(2)} / ${meanGradientCosine.toFixed(5)} / ` +
        `${divergence?.toPrecision(2) ?? '–'} |`
      );
    });
    console.log(`| ${name} | ${bytesPerToken.toFixed(0)} |${cells.join('')}`);
  }
  console.log(`\nwithin ${settings.budget} bytes, for T = ${settings.temperature}: ${plan.recommended}`);
} finally {
  await rm(folder, { recursive: true, force: true });
}
