import { mkdir, readFile, realpath, writeFile } from 'node:fs/promises';
import { isBuiltin } from 'node:module';
import { dirname, join, relative, sep } from 'node:path';
import { pathToFileURL } from 'node:url';
import { build, type Plugin, stop } from 'esbuild';

/**
 * Become part of a bundle, with what they import, as our own sources do: modules of plain JavaScript, apache-arrow has
 * 150 of them. All other libraries are loaded from node_modules: native ones, those in CommonJS, and the S3 client.
 */
const BUNDLED_LIBRARIES = ['apache-arrow', 'p-queue', 'valibot', '@huggingface/jinja', '@huggingface/tokenizers'];

/** What `import.meta.url` becomes: a constant of each source. */
const SOURCE_URL = 'stillhouseSourceUrl';

/** How esbuild makes modules of plain JavaScript for Node.js, which share what they import. */
export const SHARED_MODULES = {
  bundle: true,
  splitting: true,
  format: 'esm',
  platform: 'node',
  target: 'node20',
  // Files of their own, without the sources: nothing reads them before a stack is shown (inline they double the text to
  // parse).
  sourcemap: 'linked',
  sourcesContent: false,
} as const;

export interface BundleRequest {
  /** The repository. */
  readonly root: string;
  /** Where the files will lie when they run; below a node_modules in which the libraries are found. */
  readonly folder: string;
  /** TypeScript files that are started, besides the worker threads of those. */
  readonly scripts: readonly string[];
}

export interface BundledFile {
  /** From the bundle's folder, with `/`. */
  readonly path: string;
  readonly contents: Uint8Array;
}

/**
 * A source keeps the URL that it has in the repository, by which it finds files beside it; its worker thread is a
 * bundle's.
 */
const keepPlaces = (root: string, folder: string): Plugin => ({
  name: 'keep-places',
  setup: ({ onResolve, onLoad }) => {
    onResolve({ filter: /^[^./]/ }, ({ path, importer, kind }) => {
      if (kind === 'entry-point') return undefined; // begins with a drive on Windows
      const library = path.split('/', path.startsWith('@') ? 2 : 1).join('/');
      const isBundled =
        path.startsWith('@stillhouse/') ||
        BUNDLED_LIBRARIES.includes(library) ||
        (importer.startsWith(join(root, 'node_modules')) && !isBuiltin(path));
      return isBundled ? undefined : { path, external: true };
    });
    onLoad({ filter: /\.ts$/ }, async ({ path }) => {
      const startsWorkers = path === join(root, 'packages', 'runtime', 'src', 'worker-link.ts');
      const url = pathToFileURL(startsWorkers ? join(folder, relative(root, path)) : path).href;
      const text = await readFile(path, 'utf8');
      // On the first line, so that all lines keep their numbers.
      const constant = text.includes('import.meta.url') ? `const ${SOURCE_URL} = ${JSON.stringify(url)}; ` : '';
      return { contents: constant + text, loader: 'ts' };
    });
  },
});

/**
 * Bundles scripts of the repository, and the worker thread of `runtime`, into plain JavaScript that shares its modules.
 * @returns for `packages/NAME/src/one.ts` a file `packages/NAME/src/one.js`, what they share, source maps, package.json
 * @throws esbuild's BuildFailure where a source is not TypeScript or imports what is not there
 */
export async function bundleSources(request: BundleRequest): Promise<readonly BundledFile[]> {
  const root = await realpath(request.root); // esbuild names files so
  const { folder } = request;
  const nameOf = (path: string) => relative(request.root, path).replace(/\.ts$/, '').split(sep).join('/');
  try {
    const { outputFiles } = await build({
      entryPoints: {
        ...Object.fromEntries(request.scripts.map((path) => [nameOf(path), path])),
        'packages/runtime/src/worker-entry': join(root, 'packages', 'runtime', 'src', 'worker.ts'),
      },
      ...SHARED_MODULES,
      define: { 'import.meta.url': SOURCE_URL },
      outdir: folder,
      write: false,
      logLevel: 'silent',
      plugins: [keepPlaces(root, folder)],
    });
    const files = outputFiles.map(({ path, contents }) => ({
      path: relative(folder, path).split(sep).join('/'),
      contents,
    }));
    return [...files, { path: 'package.json', contents: Buffer.from('{ "type": "module" }\n') }];
  } finally {
    await stop(); // Or its process stays as long as ours, which may train for days.
  }
}

/** @param folder exists; may be another than the one that the files are made for, if it is renamed before they run */
export async function writeBundledFiles(folder: string, files: readonly BundledFile[]): Promise<void> {
  for (const parent of new Set(files.map(({ path }) => dirname(path)))) {
    await mkdir(join(folder, parent), { recursive: true });
  }
  await Promise.all(files.map(({ path, contents }) => writeFile(join(folder, path), contents)));
}
