import assert from 'node:assert/strict';
import { access, cp, mkdir, symlink, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { makeTemporaryFolder, runNode } from '@stillhouse/testing';
import { slowTests } from '../scripts/slow-tests.ts';

const repository = fileURLToPath(new URL('..', import.meta.url));
const passing = "import { test } from 'node:test'; test('passes', () => {});\n";

async function runTree(
  t: Parameters<typeof makeTemporaryFolder>[0],
  files: Readonly<Record<string, string>>,
  args: readonly string[] = [],
) {
  const root = await makeTemporaryFolder(t, 'run-tests-');
  await mkdir(join(root, 'packages'));
  await cp(join(repository, 'scripts'), join(root, 'scripts'), { recursive: true });
  await writeFile(join(root, 'package.json'), '{ "type": "module" }');
  await symlink(join(repository, 'node_modules'), join(root, 'node_modules'));
  for (const [path, text] of Object.entries(files)) {
    await mkdir(dirname(join(root, path)), { recursive: true });
    await writeFile(join(root, path), text);
  }
  const { code, stdout } = await runNode(['scripts/run-tests.ts', ...args], { cwd: root });
  const lines = stdout.trimEnd().split('\n');
  return { code, lines, last: lines.at(-1) };
}

test('passing tests of packages and of test/ are counted once each, parents not', async (t) => {
  const nested = `import { describe, test } from 'node:test';
    test('parent', async (t) => { await t.test('one', () => {}); await t.test('two', () => {}); });
    describe('suite', () => { test('three', () => {}); });`;
  const result = await runTree(t, { 'packages/a/src/deep/a.test.ts': nested, 'test/b.test.ts': passing });
  assert.deepEqual([result.last, result.code], ['4 passed, 0 failed', 0]);
});

test('failures of every kind are counted, and fail the run', async (t) => {
  const failing = `import { test } from 'node:test';
    test('parent', async (t) => { await t.test('child', () => { throw new Error('reason given'); }); });
    test('passes', () => {});`;
  const result = await runTree(t, {
    'packages/a/src/a.test.ts': failing,
    'packages/a/src/dies.test.ts': "throw new Error('dies');\n",
    'packages/a/src/none.test.ts': 'export {};\n',
  });
  assert.deepEqual([result.last, result.code], ['1 passed, 3 failed', 1]);
  assert.ok(result.lines.some((line) => line.includes('Error: reason given')));
  assert.ok(result.lines.includes('problem: packages/a/src/none.test.ts: holds no test'));
});

test('skipped tests are said aloud with their reasons', async (t) => {
  const skipping = `import { test } from 'node:test';
    test('needs a model', { skip: 'STILLHOUSE_MODELS is not set' }, () => {});
    test('later', { todo: 'not yet' }, () => { throw new Error('known'); });`;
  const result = await runTree(t, { 'test/a.test.ts': skipping, 'test/b.test.ts': passing });
  assert.deepEqual([result.last, result.code], ['1 passed, 0 failed, 2 skipped', 0]);
  assert.ok(result.lines.includes('skipped: test/a.test.ts: needs a model: STILLHOUSE_MODELS is not set'));
  assert.ok(result.lines.includes('skipped: test/a.test.ts: later: not yet'));
});

test('arguments choose files by a part of their path; a run without a test fails', async (t) => {
  const files = { 'packages/a/src/a.test.ts': passing, 'packages/b/src/b.test.ts': passing };
  const chosen = await runTree(t, files, ['packages/b']);
  assert.deepEqual([chosen.last, chosen.code], ['1 passed, 0 failed', 0]);
  const none = await runTree(t, files, ['packages/c']);
  assert.deepEqual([none.last, none.code], ['0 passed, 0 failed', 1]);
});

test('the slow files are started first, the longest first, and each of them is there', async (t) => {
  for (const path of slowTests) await access(join(repository, path));
  const [longest, next] = slowTests as [string, string];
  const named = (name: string) => `import { test } from 'node:test'; test('${name}', () => {});\n`;
  const { lines } = await runTree(t, {
    'packages/a/src/a.test.ts': named('first by name'),
    [next]: named('second'),
    [longest]: named('longest'),
  });
  const order = lines.flatMap((line) => /(longest|second|first by name)/.exec(line)?.[0] ?? []);
  assert.deepEqual(order, ['longest', 'second', 'first by name']);
});

describe('where there is a command to test', () => {
  // What a bundle has besides the tests.
  const command = {
    'packages/cli/src/main.ts': 'export {};\n',
    'packages/runtime/src/worker.ts': 'export {};\n',
  };
  const tells = `import { test } from 'node:test';
    import { name } from './imported.ts';
    const language = process.execArgv.join().includes('tsx') ? 'TypeScript' : 'JavaScript';
    test(\`\${name}, \${import.meta.url.replace(/.*[/]packages/, 'packages')}, \${language}\`, () => {});`;
  const files = {
    ...command,
    'packages/a/src/a.test.ts': tells,
    'packages/a/src/imported.ts': "export const name: string = 'one';\n",
  };

  test('tests run as plain JavaScript, under the names of their sources', async (t) => {
    const { lines, last, code } = await runTree(t, {
      ...files,
      'packages/a/src/none.test.ts': 'export {};\n',
      'packages/a/src/skips.test.ts':
        "import { test } from 'node:test';\ntest('needs a model', { skip: 'it is not there' }, () => {});\n",
      'packages/a/src/dies.test.ts': "throw new Error('dies');\n",
    });
    assert.ok(lines.some((line) => line.includes('one, packages/a/src/a.test.ts, JavaScript')));
    assert.ok(lines.includes('problem: packages/a/src/none.test.ts: holds no test'));
    assert.ok(lines.includes('skipped: packages/a/src/skips.test.ts: needs a model: it is not there'));
    assert.deepEqual([last, code], ['1 passed, 2 failed, 1 skipped', 1]);
  });

  test('where one cannot be bundled it is said, it fails by itself, and the others run from their sources', async (t) => {
    const { lines, last, code } = await runTree(t, {
      ...files,
      'packages/a/src/broken.test.ts': "import './absent.ts';\n",
    });
    assert.ok(lines.some((line) => line.startsWith('The tests run from their sources: ')));
    assert.ok(lines.some((line) => line.includes('one, packages/a/src/a.test.ts, TypeScript')));
    assert.deepEqual([last, code], ['1 passed, 1 failed', 1]);
  });
});
