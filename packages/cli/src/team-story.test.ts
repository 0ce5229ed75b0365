import assert from 'node:assert/strict';
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { makeTemporaryFolder, runNode } from '@stillhouse/testing';
import { test } from 'vitest';

const bin = fileURLToPath(new URL('../bin/stillhouse.js', import.meta.url));
const golden = (name: string) => fileURLToPath(new URL(`../../../test/golden/${name}`, import.meta.url));
const teacher = golden('qwen2-tiny-untied');

interface Pushed {
  readonly digest: string;
  readonly formerDigest: string | null;
  readonly filesSent: number;
  readonly filesPresent: number;
}
interface Pulled {
  readonly digest: string;
  readonly filesFetched: number;
  readonly filesPresent: number;
  readonly groups: readonly string[];
  readonly omittedGroups: readonly string[];
}

test('a team: A builds, B trains on top-k, C adds hidden states, B fetches the difference; one digest in the reports', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const remote = `file://${join(folder, 'share')}#gsm8k`;
  const run = async <Result>(...args: string[]): Promise<Result> => {
    const { code, stdout, stderr } = await runNode([bin, ...args, '--json'], { cwd: folder });
    assert.equal(code, 0, `${args.join(' ')}\n${stderr}`);
    return JSON.parse(stdout) as Result;
  };
  const train = (cache: string, out: string, labels: string) =>
    run<{ readonly cacheDigest: string }>(
      ...['train', '--cache', cache, '--student', golden('qwen2-tiny'), '--out', out, '--labels', labels],
      ...['--steps', '2', '--batch-tokens', '48'],
    );
  const report = async (out: string) =>
    (JSON.parse(await readFile(join(folder, out, 'training.json'), 'utf8')) as { readonly cacheDigest: string })
      .cacheDigest;
  const rows = Array.from({ length: 6 }, (_, row) =>
    JSON.stringify({
      id: `row-${row}`,
      input_ids: Array.from({ length: 16 }, (_, i) => (row * 97 + i * i * 13 + 7) % 512),
      loss_mask: Array.from({ length: 16 }, (_, i) => (i >= 6 ? 1 : 0)),
    }),
  );
  await writeFile(join(folder, 'rows.jsonl'), `${rows.join('\n')}\n`);

  // A has the data and the teacher, and shares top-k labels.
  const data = ['--teacher', teacher, '--data', 'rows.jsonl'];
  await run('cache', 'build', ...data, '--labels', 'topk', '--top-k', '8', '--rows-per-shard', '2', '--out', 'a');
  const byA = await run<Pushed>('cache', 'push', 'a', remote);
  assert.equal(byA.filesPresent, 0);

  // B wants nothing else.
  const first = await run<Pulled>('cache', 'pull', remote, 'b', '--groups', 'topk');
  assert.equal(first.digest, byA.digest);
  assert.equal((await train('b', 'b-topk', 'topk')).cacheDigest, byA.digest);

  // C adds hidden states and the output matrix, and shares them under the same name.
  await run('cache', 'pull', remote, 'c');
  await run('cache', 'extend', 'c', '--in-place', '--teacher', teacher, '--labels', 'hidden');
  const byC = await run<Pushed>('cache', 'push', 'c', remote);
  assert.equal(byC.formerDigest, byA.digest);
  assert.notEqual(byC.digest, byA.digest);
  assert.equal(byC.filesPresent, byA.filesSent, 'what A sent is not sent again');

  // B fetches the difference, and nothing of what is there.
  const second = await run<Pulled>('cache', 'pull', remote, 'b');
  assert.equal(second.digest, byC.digest);
  assert.deepEqual([second.filesFetched, second.omittedGroups], [byC.filesSent, []]);
  assert.ok(second.groups.includes('hidden-final') && second.groups.includes('head'));
  assert.deepEqual((await readdir(join(folder, 'b/shards'))).sort(), (await readdir(join(folder, 'c/shards'))).sort());
  assert.equal((await run<{ readonly ok: boolean }>('cache', 'verify', 'b')).ok, true);

  // Both train on all of it; so does D, who fetches nothing before.
  await train('b', 'b-full', 'full');
  await train('c', 'c-full', 'full');
  const { code, stderr } = await runNode(
    [
      ...[bin, 'train', '--cache', remote, '--student', golden('qwen2-tiny'), '--out', 'd-full', '--labels', 'full'],
      ...['--steps', '2', '--batch-tokens', '48'],
    ],
    { cwd: folder, env: { STILLHOUSE_CACHE_DIR: join(folder, 'local') } },
  );
  assert.equal(code, 0, stderr);
  assert.deepEqual(
    await Promise.all(['b-full', 'c-full', 'd-full'].map(report)),
    Array.from({ length: 3 }, () => byC.digest),
  );
  const [b, c, d] = await Promise.all(
    ['b-full', 'c-full', 'd-full'].map((out) => readFile(join(folder, out, 'model.safetensors'))),
  );
  assert.ok(b!.equals(c!) && b!.equals(d!), 'the same cache makes the same student');

  // A's own folder follows too: the remote has what stands there, so nothing is lost.
  const forA = await run<Pulled>('cache', 'pull', remote, 'a');
  assert.deepEqual([forA.digest, forA.filesFetched], [byC.digest, byC.filesSent]);
  // The cache as it was keeps its digest.
  const old = await run<Pulled>('cache', 'pull', `${remote.slice(0, -'#gsm8k'.length)}#${byA.digest}`, 'old');
  assert.deepEqual([...old.groups].sort(), ['rows', 'topk']);
});
