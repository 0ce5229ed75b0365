// Bundles what tests start as processes of their own, the `stillhouse` command and the scripts in src/testing, into plain
// JavaScript. From TypeScript each start takes more than a second of processor time, most of it to load 400 modules one
// by one, and tests start hundreds; from the bundle it takes a fifth of that.
import { existsSync, readdirSync } from 'node:fs';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { dirname, join, relative } from 'node:path';
import { pathToFileURL } from 'node:url';
import { build, type Plugin } from 'esbuild';

/** Becomes part of the bundle as our own sources do, it has 150 modules; all other libraries are loaded from node_modules. */
const BUNDLED_LIBRARIES = ['apache-arrow', 'flatbuffers', 'tslib'];

export interface ScriptBundle {
  /** For `src/testing/one.ts` of a package it has `packages/NAME/src/testing/one.js`, and `packages/cli/bin/stillhouse.js`. */
  readonly folder: string;
  remove(): Promise<void>;
}

/** A source keeps the URL that it has in the repository, by which it finds files beside it. Worker threads are bundled too. */
const bundleSources = (root: string, folder: string): Plugin => ({
  name: 'bundle-sources',
  setup: ({ onResolve, onLoad }) => {
    onResolve({ filter: /^[^./]/ }, ({ path }) => {
      const isBundled = path.startsWith('@stillhouse/') || BUNDLED_LIBRARIES.includes(path.split('/')[0]!);
      return isBundled ? undefined : { path, external: true };
    });
    onLoad({ filter: /\.ts$/ }, async ({ path }) => {
      const startsWorkers = path === join(root, 'packages', 'runtime', 'src', 'worker-link.ts');
      const url = pathToFileURL(startsWorkers ? join(folder, relative(root, path)) : path).href;
      const text = await readFile(path, 'utf8');
      return { contents: text.replaceAll('import.meta.url', JSON.stringify(url)), loader: 'ts' };
    });
  },
});

function listScripts(root: string): readonly string[] {
  return readdirSync(join(root, 'packages')).flatMap((name) => {
    const folder = join(root, 'packages', name, 'src', 'testing');
    return existsSync(folder) ? readdirSync(folder).map((file) => join(folder, file)) : [];
  });
}

/**
 * @param root the repository
 * @returns undefined where there is no such command to test
 */
export async function bundleScripts(root: string): Promise<ScriptBundle | undefined> {
  const main = join(root, 'packages', 'cli', 'src', 'main.ts');
  if (!existsSync(main)) return undefined;
  // In node_modules, so that libraries are found.
  const folder = await mkdtemp(join(root, 'node_modules', '.stillhouse-scripts-'));
  const nameOf = (path: string) => relative(root, path).replace(/\.ts$/, '');
  const scripts = [main, ...listScripts(root).filter((path) => path.endsWith('.ts'))];
  await build({
    entryPoints: {
      ...Object.fromEntries(scripts.map((path) => [nameOf(path), path])),
      'packages/runtime/src/worker-entry': join(root, 'packages', 'runtime', 'src', 'worker.ts'),
    },
    bundle: true,
    splitting: true,
    format: 'esm',
    platform: 'node',
    target: 'node20',
    outdir: folder,
    logLevel: 'error',
    plugins: [bundleSources(root, folder)],
  });
  await writeFile(join(folder, 'package.json'), '{ "type": "module" }');
  const command = join(folder, 'packages', 'cli', 'bin', 'stillhouse.js');
  await mkdir(dirname(command));
  await writeFile(
    command,
    "import { main } from '../src/main.js';\nprocess.exitCode = await main(process.argv.slice(2));\n",
  );
  return { folder, remove: () => rm(folder, { recursive: true }) };
}
