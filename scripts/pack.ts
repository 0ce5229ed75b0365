// `npm run pack`: makes stillhouse-VERSION.tgz in out/pack, the package that people install. It is put together in a
// folder of its own, out/pack/package: a `bin` in the manifest of the repository would make npx in a clone install the
// clone into its cache.
import { execFileSync } from 'node:child_process';
import { cp, mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { basename, dirname, join, relative, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build, type Plugin } from 'esbuild';
import { SHARED_MODULES } from './bundle-sources.ts';

const root = fileURLToPath(new URL('..', import.meta.url));
const folder = join(root, 'out', 'pack', 'package');
const scope = '@stillhouse/';
const dist = join(folder, 'dist');
const packages = join(root, 'packages');

/** Packages that may be imported from outside, as `stillhouse/NAME`. */
const libraries = ['errors', 'settings', 'teacher-cache', 'teacher-inference', 'student-trainer', 'evaluation'];

const command = `#!/usr/bin/env node
import './require-node.js';
const { default: module } = await import('node:module');
module.enableCompileCache?.(); // From Node.js 22 on: what one start compiles the next does not.
const { main } = await import('./main.js');
process.exitCode = await main(process.argv.slice(2));
`;

/** Where the one folder of the bundle has what a source finds by `import.meta.url`: worker thread, version, data. */
async function placeNeighbour(source: string, path: string): Promise<string> {
  const name = basename(path);
  if (name === 'package.json') return '../package.json';
  if (name !== 'worker-entry.js') await cp(join(dirname(source), path), join(dist, name));
  return `./${name}`;
}

const oneFolder: Plugin = {
  name: 'one-folder',
  setup: ({ onResolve, onLoad }) => {
    // Libraries stay outside, to be installed and updated as any others, under their own licences.
    onResolve({ filter: /^[^./]/ }, ({ path, kind }) =>
      kind === 'entry-point' || path.startsWith(scope) ? undefined : { path, external: true },
    );
    onLoad({ filter: /\.ts$/ }, async ({ path }) => {
      let contents = await readFile(path, 'utf8');
      for (const [whole, neighbour] of contents.matchAll(/new URL\('([^']+)', import\.meta\.url\)/g)) {
        contents = contents.replace(whole, `new URL('${await placeNeighbour(path, neighbour!)}', import.meta.url)`);
      }
      return { contents, loader: 'ts' };
    });
  },
};

/**
 * Bundles all in one go, so that the command, the worker thread and the libraries share each module.
 * @returns the packages from npm that they import
 */
async function bundleCode(): Promise<ReadonlySet<string>> {
  const source = (name: string, file = 'index.ts') => join(packages, name, 'src', file);
  const { metafile } = await build({
    entryPoints: {
      main: source('cli', 'main.ts'),
      'worker-entry': source('runtime', 'worker.ts'),
      ...Object.fromEntries(libraries.map((name) => [name, source(name)])),
    },
    ...SHARED_MODULES,
    outdir: dist,
    chunkNames: 'chunk-[hash]',
    metafile: true,
    logLevel: 'error',
    plugins: [oneFolder],
  });
  // A stack then names sources as if they lay in the package, not in a folder beside it.
  for (const name of (await readdir(dist)).filter((one) => one.endsWith('.map'))) {
    const text = await readFile(join(dist, name), 'utf8');
    await writeFile(
      join(dist, name),
      text.replaceAll(`"${relative(dist, packages).split(sep).join('/')}/`, '"../packages/'),
    );
  }
  const imported = Object.values(metafile.outputs).flatMap(({ imports }) => imports);
  return new Set(
    imported
      .filter(({ external, path }) => external === true && !path.startsWith('node:'))
      .map(({ path }) => path.split('/', path.startsWith('@') ? 2 : 1).join('/')),
  );
}

/** Declarations of the libraries and of all packages below them, which name each other by relative paths. */
async function writeTypes(): Promise<void> {
  const types = join(dist, 'types');
  const config = join(root, 'out', 'pack', 'tsconfig.json');
  const base = JSON.parse(await readFile(join(root, 'tsconfig.json'), 'utf8'));
  const compilerOptions = {
    ...base.compilerOptions,
    noEmit: false,
    declaration: true,
    emitDeclarationOnly: true,
    rootDir: packages,
    // As sources: what the compiler finds in node_modules it does not declare.
    paths: { [`${scope}*`]: [join(packages, '*', 'src', 'index.ts')] },
    outDir: types,
    typeRoots: [join(root, 'node_modules', '@types')],
  };
  const files = libraries.map((name) => join(packages, name, 'src', 'index.ts'));
  await writeFile(config, JSON.stringify({ compilerOptions, files }));
  execFileSync(process.execPath, [join(root, 'node_modules', 'typescript', 'bin', 'tsc'), '-p', config], {
    stdio: 'inherit',
  });
  for (const name of await readdir(types, { recursive: true })) {
    if (!name.endsWith('.d.ts')) continue;
    const path = join(types, name);
    const text = await readFile(path, 'utf8');
    await writeFile(
      path,
      text.replace(/(\bfrom |\bimport\()(['"])([^'"]+)\2/g, (_, before, quote, specifier) => {
        return `${before}${quote}${resolveSpecifier(types, path, specifier)}${quote}`;
      }),
    );
  }
}

function resolveSpecifier(types: string, from: string, specifier: string): string {
  if (specifier.startsWith('.')) return specifier.replace(/\.ts$/, '.js');
  if (!specifier.startsWith(scope)) return specifier;
  const target = join(types, specifier.slice(scope.length), 'src', 'index.js');
  const path = relative(dirname(from), target).split(sep).join('/');
  return path.startsWith('.') ? path : `./${path}`;
}

/** Exact versions, as the packages have them. */
async function findVersions(names: ReadonlySet<string>): Promise<Readonly<Record<string, string>>> {
  const versions: Record<string, string> = {};
  for (const name of await readdir(packages)) {
    const { dependencies = {} } = JSON.parse(await readFile(join(packages, name, 'package.json'), 'utf8'));
    for (const library of names) if (library in dependencies) versions[library] = dependencies[library];
  }
  const missing = [...names].filter((name) => !(name in versions));
  if (missing.length > 0) throw new Error(`no package of ours lists ${missing.join(', ')}`);
  return Object.fromEntries(Object.entries(versions).sort());
}

await rm(join(root, 'out', 'pack'), { recursive: true, force: true });
await mkdir(dist, { recursive: true });
const imported = await bundleCode();
await writeTypes();
await writeFile(join(dist, 'stillhouse.js'), command, { mode: 0o755 });
const copies = ['cli/bin/require-node.js', 'runtime/bin/skip-cuda-download.js'];
for (const path of copies) await cp(join(packages, path), join(dist, path.split('/').at(-1)!));
for (const name of ['README.md', 'LICENSE']) await cp(join(root, name), join(folder, name));
const { version, license, engines } = {
  ...JSON.parse(await readFile(join(root, 'package.json'), 'utf8')),
  ...JSON.parse(await readFile(join(packages, 'cli', 'package.json'), 'utf8')),
};
const manifest = {
  name: 'stillhouse',
  version,
  description: 'Offline knowledge distillation: run the teacher once, train students from its cache',
  license,
  type: 'module',
  engines,
  bin: { stillhouse: 'dist/stillhouse.js' },
  exports: {
    ...Object.fromEntries(
      libraries.map((name) => [
        `./${name}`,
        { types: `./dist/types/${name}/src/index.d.ts`, default: `./dist/${name}.js` },
      ]),
    ),
    './package.json': './package.json',
  },
  files: ['dist'],
  scripts: { preinstall: 'node dist/skip-cuda-download.js' },
  dependencies: await findVersions(imported),
};
await writeFile(join(folder, 'package.json'), `${JSON.stringify(manifest, null, 2)}\n`);
const npm = process.platform === 'win32' ? 'npm.cmd' : 'npm';
execFileSync(npm, ['pack', '--silent', '--pack-destination', dirname(folder)], {
  cwd: folder,
  stdio: 'inherit',
  shell: process.platform === 'win32',
});
