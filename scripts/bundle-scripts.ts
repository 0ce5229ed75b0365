// Bundles what tests start as processes of their own, the `stillhouse` command and the scripts in src/testing, into plain
// JavaScript. From TypeScript each start takes more than a second of processor time, most of it to load 400 modules one
// by one, and tests start hundreds; from the bundle it takes a fifth of that. Made anew for each run of the tests, which
// nothing that is edited meanwhile changes.
import { existsSync, readdirSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { bundleSources, writeBundledFiles } from '@stillhouse/source-bundle';

export interface ScriptBundle {
  /** For `src/testing/one.ts` of a package it has `packages/NAME/src/testing/one.js`, and `packages/cli/bin/stillhouse.js`. */
  readonly folder: string;
  remove(): Promise<void>;
}

const prefix = '.stillhouse-scripts-';

/**
 * @param root the repository
 * @returns undefined where there is no such command to test
 */
export async function bundleScripts(root: string): Promise<ScriptBundle | undefined> {
  const main = join(root, 'packages', 'cli', 'src', 'main.ts');
  await removeAbandoned(root);
  if (!existsSync(main)) return undefined;
  // In node_modules, so that libraries are found.
  const folder = await mkdtemp(join(root, 'node_modules', `${prefix}${process.pid}-`));
  const scripts = [main, ...listScripts(root).filter((path) => path.endsWith('.ts'))];
  const start = "import { main } from '../src/main.js';\nprocess.exitCode = await main(process.argv.slice(2));\n";
  await writeBundledFiles(folder, [
    ...(await bundleSources({ root, folder, scripts })),
    { path: 'packages/cli/bin/stillhouse.js', contents: Buffer.from(start) },
  ]);
  return { folder, remove: () => rm(folder, { recursive: true }) };
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
