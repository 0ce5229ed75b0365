// What tests start as processes or threads of their own, bundled once for each run of the tests: from TypeScript each
// start takes more than a second of processor time, most of it to load 400 modules one by one; from the bundle a fifth
// of that.
import { existsSync, readdirSync } from 'node:fs';
import { mkdtemp, rm, symlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import type { TestProject } from 'vitest/node';
import { bundleSources, writeBundledFiles } from './bundle-sources.ts';

const root = dirname(dirname(fileURLToPath(import.meta.url)));

/**
 * For vitest's `globalSetup`. `runNode` and `startNode` find in the folder that STILLHOUSE_TEST_SCRIPTS names
 * `packages/NAME/src/testing/one.js` for `src/testing/one.ts` of a package, and `packages/cli/bin/stillhouse.js`.
 */
export async function setup(project: TestProject): Promise<(() => Promise<void>) | undefined> {
  // Called for each of vitest's projects.
  if (process.env.STILLHOUSE_TEST_SCRIPTS !== undefined) return undefined;
  const folder = await mkdtemp(join(tmpdir(), 'stillhouse-tests-'));
  // Where a bundle finds the libraries.
  await symlink(join(root, 'node_modules'), join(folder, 'node_modules'), 'junction');
  await bundleInto(folder);
  project.onTestsRerun(() => bundleInto(folder));
  process.env.STILLHOUSE_TEST_SCRIPTS = folder;
  process.env.STILLHOUSE_TEST_WORKER_LINK = pathToFileURL(join(folder, 'packages/runtime/src/worker-link.ts')).href;
  return () => rm(folder, { recursive: true });
}

async function bundleInto(folder: string): Promise<void> {
  const main = join(root, 'packages', 'cli', 'src', 'main.ts');
  const start = "import { main } from '../src/main.js';\nprocess.exitCode = await main(process.argv.slice(2));\n";
  await writeBundledFiles(folder, [
    ...(await bundleSources({ root, folder, scripts: [main, ...listScripts()] })),
    { path: 'packages/cli/bin/stillhouse.js', contents: Buffer.from(start) },
  ]);
}

function listScripts(): readonly string[] {
  return readdirSync(join(root, 'packages')).flatMap((name) => {
    const folder = join(root, 'packages', name, 'src', 'testing');
    if (!existsSync(folder)) return [];
    return readdirSync(folder)
      .filter((file) => file.endsWith('.ts'))
      .map((file) => join(folder, file));
  });
}
