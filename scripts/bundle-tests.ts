// Bundles the tests and what they start as processes of their own, the `stillhouse` command and the scripts in src/testing,
// into plain JavaScript. From TypeScript each start takes more than a second of processor time, most of it to load 400
// modules one by one, and a run of the tests starts hundreds; from the bundle it takes a fifth of that. Made anew for each
// run, which nothing that is edited meanwhile changes.
import { existsSync, readdirSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { join, relative } from 'node:path';
import { bundleSources, writeBundledFiles } from './bundle-sources.ts';

export interface TestBundle {
  /** For `src/testing/one.ts` of a package it has `packages/NAME/src/testing/one.js`, and `packages/cli/bin/stillhouse.js`. */
  readonly folder: string;
  /** The tests, in the order in which they were given. */
  readonly files: readonly string[];
  /** run-test-files.ts. */
  readonly runner: string;
  remove(): Promise<void>;
}

const prefix = '.stillhouse-tests-';

/**
 * @param root the repository
 * @param tests paths of test files
 * @returns undefined where there is no such command to test
 * @throws esbuild's BuildFailure where a file is not TypeScript or imports what is not there
 */
export async function bundleTests(root: string, tests: readonly string[]): Promise<TestBundle | undefined> {
  const main = join(root, 'packages', 'cli', 'src', 'main.ts');
  await removeAbandoned(root);
  if (!existsSync(main)) return undefined;
  // In node_modules, so that libraries are found.
  const folder = await mkdtemp(join(root, 'node_modules', `${prefix}${process.pid}-`));
  const remove = () => rm(folder, { recursive: true });
  const runner = join(root, 'scripts', 'run-test-files.ts');
  const scripts = [main, runner, ...listScripts(root).filter((path) => path.endsWith('.ts')), ...tests];
  const start = "import { main } from '../src/main.js';\nprocess.exitCode = await main(process.argv.slice(2));\n";
  const bundled = (path: string) => join(folder, relative(root, path)).replace(/\.ts$/, '.js');
  try {
    await writeBundledFiles(folder, [
      ...(await bundleSources({ root, folder, scripts })),
      { path: 'packages/cli/bin/stillhouse.js', contents: Buffer.from(start) },
    ]);
  } catch (error) {
    await remove();
    throw error;
  }
  return {
    folder,
    files: tests.map(bundled),
    runner: bundled(runner),
    remove,
  };
}

function listScripts(root: string): readonly string[] {
  return readdirSync(join(root, 'packages')).flatMap((name) => {
    const folder = join(root, 'packages', name, 'src', 'testing');
    return existsSync(folder) ? readdirSync(folder).map((file) => join(folder, file)) : [];
  });
}

/** What a killed run has left. */
async function removeAbandoned(root: string): Promise<void> {
  const modules = join(root, 'node_modules');
  for (const name of readdirSync(modules).filter((one) => one.startsWith(prefix))) {
    const pid = Number(name.slice(prefix.length).split('-')[0]);
    if (!Number.isInteger(pid) || !isRunning(pid)) await rm(join(modules, name), { recursive: true, force: true });
  }
}

function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}
