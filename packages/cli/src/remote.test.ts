import assert from 'node:assert/strict';
import { readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { makeTemporaryFolder, runNode } from '@stillhouse/testing';
import { test } from 'vitest';

const bin = fileURLToPath(new URL('../bin/stillhouse.js', import.meta.url));
const golden = (name: string) => fileURLToPath(new URL(`../../../test/golden/${name}`, import.meta.url));

test('cache push, ls, pull and a training run from the remote, by commands alone', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const run = (...args: string[]) =>
    runNode([bin, ...args], { cwd: folder, env: { STILLHOUSE_CACHE_DIR: join(folder, 'local') } });
  const runForJson = async <Result>(...args: string[]): Promise<Result> => {
    const { code, stdout, stderr } = await run(...args, '--json');
    assert.equal(code, 0, stderr);
    return JSON.parse(stdout) as Result;
  };
  const rows = Array.from({ length: 4 }, (_, row) =>
    JSON.stringify({
      id: `row-${row}`,
      input_ids: Array.from({ length: 12 }, (_, i) => (row * 97 + i * i * 13 + 7) % 512),
      loss_mask: Array.from({ length: 12 }, (_, i) => (i >= 4 ? 1 : 0)),
    }),
  );
  await writeFile(join(folder, 'rows.jsonl'), `${rows.join('\n')}\n`);
  const teacher = ['--teacher', golden('qwen2-tiny-untied'), '--data', 'rows.jsonl', '--top-k', '8'];
  const { code, stderr } = await run('cache', 'build', ...teacher, '--out', 'cache');
  assert.equal(code, 0, stderr);

  const pushed = await run('cache', 'push', 'cache', 'remote#tiny', '--concurrency', '2');
  assert.equal(pushed.code, 0, pushed.stderr);
  assert.match(
    pushed.stdout,
    /^name +tiny\ndigest +[0-9a-f]{64}\nsent +\d+ files, [\d.]+ KiB\nthere already +0 files/m,
  );
  assert.match(pushed.stderr, /^cache push [\d,]+\/[\d,]+ bytes, [\d.,]+ [KM]?i?B\/s, 0 s left, file \d+\/\d+$/m);
  const again = await runForJson<{ readonly filesSent: number; readonly digest: string }>(
    'cache',
    'push',
    'cache',
    'remote#tiny',
  );
  assert.equal(again.filesSent, 0);

  const ls = await run('cache', 'ls', 'remote');
  assert.match(ls.stdout, new RegExp(`^name +digest.*\\ntiny +${again.digest.slice(0, 12)} +4 `));
  const listed = await runForJson<{ readonly caches: readonly { readonly digest: string }[] }>('cache', 'ls', 'remote');
  assert.deepEqual(
    listed.caches.map(({ digest }) => digest),
    [again.digest],
  );
  assert.equal((await run('cache', 'ls', 'nowhere')).stdout, 'no caches\n');

  const part = await run('cache', 'pull', 'remote#tiny', 'pulled', '--groups', 'topk');
  assert.equal(part.code, 0, part.stderr);
  assert.match(part.stdout, /^left out +.*hidden-final/m);
  assert.equal((await run('cache', 'verify', 'pulled')).code, 0);
  const extended = await run('cache', 'extend', 'pulled', '--in-place', ...teacher.slice(0, 2), '--hidden-layers', '1');
  assert.equal(extended.code, 1);
  assert.match(extended.stderr, /was left out when the cache was pulled.*CACHE_GROUP_ABSENT/);
  const whole = await runForJson<{ readonly omittedGroups: readonly string[] }>(
    'cache',
    'pull',
    'remote#tiny',
    'pulled',
  );
  assert.deepEqual(whole.omittedGroups, []);

  const trained = await runForJson<{ readonly cacheDigest: string }>(
    ...['train', '--cache', `file://${folder}/remote#tiny`, '--student', golden('qwen2-tiny'), '--out', 'student'],
    ...['--labels', 'topk', '--steps', '2', '--batch-tokens', '24'],
  );
  assert.equal(trained.cacheDigest, again.digest);
  // Only rows and top-k came here.
  assert.equal(
    (JSON.parse(await readFile(join(folder, 'student/training.json'), 'utf8')) as { cacheDigest: string }).cacheDigest,
    again.digest,
  );
  assert.ok((await stat(join(folder, 'local/blobs'))).isDirectory());

  const failures: readonly (readonly [readonly string[], number, RegExp])[] = [
    [['cache', 'push', 'cache'], 2, /SETTING_MISSING/],
    [['cache', 'push', 'cache', 'https://host/x'], 1, /REMOTE_READ_ONLY/],
    [['cache', 'pull', 'remote#other', 'x'], 1, /no cache named other; expected one of tiny.*REMOTE_CACHE_UNKNOWN/],
    [['cache', 'pull', 'https://me:secret@host/x', 'x'], 1, /credentials in the address.*REMOTE_LOCATION_INVALID/],
    [['cache', 'pull', 'ftp://host/x', 'x'], 1, /ftp:\/\/ is no remote.*REMOTE_LOCATION_INVALID/],
    [['cache', 'pull', 'remote#tiny', 'y', '--max-bytes', '10'], 1, /PULL_TOO_LARGE/],
    [
      ['train', '--cache', 's3://UPPER/x', '--student', golden('qwen2-tiny'), '--out', 'z'],
      1,
      /REMOTE_LOCATION_INVALID/,
    ],
  ];
  for (const [args, exitCode, message] of failures) {
    const failed = await run(...args);
    assert.equal(failed.code, exitCode, failed.stderr);
    assert.match(failed.stderr, message);
    assert.ok(!failed.stderr.includes('secret'));
  }
});
