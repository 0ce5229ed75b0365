import assert from 'node:assert/strict';
import { symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type Lifetime, makeTemporaryFolder, runNode } from '@stillhouse/testing';
import { test } from 'vitest';

const repository = fileURLToPath(new URL('..', import.meta.url));
const reporter = JSON.stringify(join(repository, 'scripts', 'tally-reporter.ts'));
const passing = "import { test } from 'vitest'; test('passes', () => {});\n";

/** Runs files as `npm test` runs the repository's, each as `NAME.test.ts`. */
async function runFiles(t: Lifetime, files: Readonly<Record<string, string>>, args: readonly string[] = []) {
  const root = await makeTemporaryFolder(t, 'tally-');
  await symlink(join(repository, 'node_modules'), join(root, 'node_modules'), 'junction');
  const config = `import { tallyReporter } from ${reporter};
    const reporters = ['default', tallyReporter];
    export default { test: { reporters, pool: 'forks', maxWorkers: 2, isolate: false } };\n`;
  await writeFile(join(root, 'vitest.config.ts'), config);
  for (const [name, text] of Object.entries(files)) await writeFile(join(root, `${name}.test.ts`), text);
  return runIn(root, args);
}

async function runIn(root: string, args: readonly string[]) {
  const script = join(repository, 'scripts', 'run-vitest.js');
  const { code, stdout, stderr } = await runNode([script, 'run', ...args], { cwd: root });
  const lines = stdout.trimEnd().split('\n');
  return { code, lines, last: lines.at(-1), output: stdout + stderr };
}

test('tests are counted once each, groups not', async (t) => {
  const grouped = `import { describe, test } from 'vitest';
    describe('group', () => { test('one', () => {}); describe('inner', () => { test('two', () => {}); }); });`;
  const { last, code } = await runFiles(t, { grouped, passing });
  assert.deepEqual([last, code], ['3 passed, 0 failed', 0]);
});

test('failures of every kind are counted, and fail the run', async (t) => {
  const failures = {
    fails: "import { test } from 'vitest'; test('fails', () => { throw new Error('reason given'); });\n",
    dies: "throw new Error('dies');\n",
    none: 'export {};\n',
    broken: "import './absent.ts';\n",
    rejects: `import { test } from 'vitest';
      test('leaves', async () => { Promise.reject(new Error('unheard')); await new Promise((done) => setTimeout(done, 50)); });\n`,
    hooks:
      "import { beforeAll, test } from 'vitest'; beforeAll(() => { throw new Error('hook'); }); test('never', " +
      '() => {});\n',
    crashes: "import { test } from 'vitest'; test('crashes', () => process.kill(process.pid, 'SIGKILL'));\n",
  };
  const { last, code, output } = await runFiles(t, { ...failures, passing });
  assert.deepEqual([last, code], ['2 passed, 7 failed, 1 skipped', 1], output);
});

test('skipped tests are said aloud with their reasons, what a name leaves out is not', async (t) => {
  const skips = `import { describe, test } from 'vitest';
    import { unless } from '@stillhouse/testing';
    test('needs a model', unless('STILLHOUSE_MODELS is not set'), () => {});
    test('needs nothing', unless(false), () => {});
    describe('group', unless('no adapter'), () => { test('inner', () => {}); });
    test('finds out', (t) => t.skip('the disk is small'));`;
  const { lines, last, code } = await runFiles(t, { skips, passing });
  assert.deepEqual([last, code], ['2 passed, 0 failed, 3 skipped', 0]);
  assert.ok(lines.includes('skipped: skips.test.ts: needs a model: STILLHOUSE_MODELS is not set'));
  assert.ok(lines.includes('skipped: skips.test.ts: group > inner: no adapter'));
  assert.ok(lines.includes('skipped: skips.test.ts: finds out: the disk is small'));
  assert.equal((await runFiles(t, { skips, passing }, ['-t', 'passes'])).last, '1 passed, 0 failed');
});

test('words choose files by a part of their path; a run without a test fails', async (t) => {
  const files = { one: passing, two: passing };
  const chosen = await runFiles(t, files, ['two']);
  assert.deepEqual([chosen.last, chosen.code], ['1 passed, 0 failed', 0]);
  const none = await runFiles(t, files, ['three']);
  assert.deepEqual([none.last, none.code], ['0 passed, 1 failed', 1]);
});

test('a run that never starts has a last line too', async (t) => {
  const root = await makeTemporaryFolder(t, 'tally-');
  await symlink(join(repository, 'node_modules'), join(root, 'node_modules'), 'junction');
  await writeFile(join(root, 'one.test.ts'), passing);
  const setup =
    "import { defineConfig } from 'vitest/config';\n" +
    `import { tallyReporter } from ${reporter};
    export default defineConfig({ test: { globalSetup: ['absent.ts'], reporters: ['default', tallyReporter] } });\n`;
  for (const config of ["throw new Error('dies');\n", "import './absent.ts';\n", setup]) {
    await writeFile(join(root, 'vitest.config.ts'), config);
    const { last, code, output } = await runIn(root, []);
    assert.deepEqual([last, code], ['0 passed, 1 failed', 1], output);
  }
});
