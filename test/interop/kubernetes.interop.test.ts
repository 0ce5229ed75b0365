import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { makeTemporaryFolder, unless } from '@stillhouse/testing';
import { test } from 'vitest';
import { runPython, skipWithout } from './exchange.ts';

interface Checked {
  readonly name: string;
  readonly problem: string | null;
}

const guide = new URL('../../docs/cluster.md', import.meta.url);

test('the jobs of docs/cluster.md are what Kubernetes takes, and one with a wrong field is not', {
  ...unless(skipWithout('kubernetes_validate', 'yaml')),
}, async (t) => {
  const path = join(await makeTemporaryFolder(t), 'guide.md');
  const check = async (text: string) => {
    await writeFile(path, text);
    return (JSON.parse(runPython('check_kubernetes.py', path)) as { readonly checked: readonly Checked[] }).checked;
  };
  const text = await readFile(guide, 'utf8');
  assert.deepEqual(await check(text), [
    { name: 'build', problem: null },
    { name: 'sweep', problem: null },
  ]);
  for (const [right, wrong, field] of [
    ['completionMode: Indexed', 'completionsMode: Indexed', /completionsMode/],
    ['completions: 4', 'completions: four', /completions.*four/],
    ['command: [stillhouse, sweep]', 'commands: [stillhouse, sweep]', /commands/],
    ['readOnly: true', 'readonly: true', /readonly/],
  ] as const) {
    assert.ok(text.includes(right), right);
    const problems = (await check(text.replace(right, wrong))).flatMap(({ problem }) => problem ?? []);
    assert.ok(problems.length > 0, `${wrong} is taken`);
    assert.match(problems.join('\n'), field);
  }
});
