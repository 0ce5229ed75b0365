import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { access, cp, mkdir, readdir, rename, rm, stat, symlink, utimes, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { promisify } from 'node:util';
import { makeTemporaryFolder } from '@stillhouse/testing';

const repository = fileURLToPath(new URL('../../..', import.meta.url));
const copied = ['cli/bin', 'cli/package.json', 'cli/src/make-command-bundle.ts', 'runtime/src/worker-entry.js'];

/** A command that says what it is, where it runs, and where its worker thread runs. */
const written = {
  'cli/src/main.ts': `
    import { whereWorkerRuns } from '@stillhouse/runtime';
    const place: string = new Error().stack!.includes('.cache') ? 'bundle' : 'sources';
    export async function main(): Promise<number> {
      console.log(JSON.stringify({ says: 'one', url: import.meta.url, place, worker: await whereWorkerRuns() }));
      return 0;
    }`,
  'runtime/src/index.ts': "export { whereWorkerRuns } from './worker-link.ts';",
  'runtime/src/worker-link.ts': `
    import { once } from 'node:events';
    import { Worker } from 'node:worker_threads';
    export async function whereWorkerRuns(): Promise<string> {
      const worker = new Worker(new URL('./worker-entry.js', import.meta.url), { execArgv: [] });
      return (await once(worker, 'message'))[0] as string;
    }`,
  'runtime/src/worker.ts': `
    import { parentPort } from 'node:worker_threads';
    parentPort!.postMessage(new Error().stack!.includes('.cache') ? 'bundle' : 'sources');`,
  'runtime/package.json': '{ "name": "@stillhouse/runtime", "type": "module", "exports": "./src/index.ts" }',
};

type TestScope = Parameters<typeof makeTemporaryFolder>[0];

/** A repository of three packages whose command starts as ours does, with our tsx and esbuild. */
async function makeRepository(t: TestScope): Promise<string> {
  const root = join(await makeTemporaryFolder(t, 'command-bundle-'), 'repository');
  for (const path of [...copied, 'source-bundle']) {
    await cp(join(repository, 'packages', path), join(root, 'packages', path), { recursive: true });
  }
  for (const [path, text] of Object.entries(written)) {
    await mkdir(dirname(join(root, 'packages', path)), { recursive: true });
    await writeFile(join(root, 'packages', path), text);
  }
  await mkdir(join(root, 'node_modules', '@stillhouse'), { recursive: true });
  for (const name of ['tsx', 'esbuild']) {
    await symlink(join(repository, 'node_modules', name), join(root, 'node_modules', name));
  }
  for (const name of ['runtime', 'source-bundle']) {
    await symlink(join('..', '..', 'packages', name), join(root, 'node_modules', '@stillhouse', name));
  }
  return root;
}

/** As a user starts it: nothing is registered beforehand. */
async function start(root: string) {
  const env = { ...process.env, NODE_OPTIONS: '', NODE_TEST_CONTEXT: undefined };
  const { stdout, stderr } = await promisify(execFile)(
    process.execPath,
    [join(root, 'packages', 'cli', 'bin', 'stillhouse.js')],
    { env },
  );
  assert.equal(stderr, '');
  return JSON.parse(stdout) as Readonly<Record<'says' | 'url' | 'place' | 'worker', string>>;
}

const cacheOf = (root: string) => join(root, 'node_modules', '.cache', 'stillhouse');

/** Paths of the bundles; fails where something half-made lies beside them. */
async function listBundles(root: string): Promise<readonly string[]> {
  const names = (await readdir(cacheOf(root))).filter((name) => !name.startsWith('key-'));
  assert.deepEqual(
    names.filter((name) => name.startsWith('making-')),
    [],
  );
  return names.map((name) => join(cacheOf(root), name));
}

async function changeText(path: string): Promise<void> {
  await writeFile(path, written['cli/src/main.ts'].replace("'one'", "'two'"));
}

test('a bundle is made by the first start and run by the next, with its worker thread', async (t) => {
  const root = await makeRepository(t);
  const first = await start(root);
  const main = join(root, 'packages', 'cli', 'src', 'main.ts');
  assert.deepEqual(first, { says: 'one', url: pathToFileURL(main).href, place: 'bundle', worker: 'bundle' });
  const bundles = await listBundles(root);
  assert.equal(bundles.length, 1);

  await rm(join(root, 'node_modules', 'esbuild')); // The next start needs no compiler.
  await rm(join(root, 'node_modules', 'tsx'));
  assert.deepEqual(await start(root), first);
  await utimes(main, new Date(), new Date()); // Another time, but the same contents.
  assert.deepEqual(await start(root), first);
  assert.deepEqual(await listBundles(root), bundles);
});

test('a changed source, and another place of the repository, get a bundle of their own', async (t) => {
  const root = await makeRepository(t);
  await start(root);
  await changeText(join(root, 'packages', 'cli', 'src', 'main.ts'));
  assert.equal((await start(root)).says, 'two');
  assert.equal((await listBundles(root)).length, 2);

  const moved = `${root}-moved`;
  await rename(root, moved);
  const { url, place } = await start(moved);
  assert.deepEqual([url, place], [pathToFileURL(join(moved, 'packages', 'cli', 'src', 'main.ts')).href, 'bundle']);
});

test('first starts at the same time all run a whole bundle', async (t) => {
  const root = await makeRepository(t);
  const results = await Promise.all([start(root), start(root), start(root)]);
  for (const { place, worker } of results) assert.deepEqual([place, worker], ['bundle', 'bundle']);
  assert.ok((await listBundles(root)).length >= 1);
});

test('a damaged bundle is never run but made again', async (t) => {
  const root = await makeRepository(t);
  const expected = await start(root);
  const damages: readonly ((bundle: string) => Promise<void>)[] = [
    (bundle) => writeFile(join(bundle, 'packages/cli/src/main.js'), "console.log('not ours');\n"),
    (bundle) => writeFile(join(bundle, 'packages/runtime/src/worker-entry.js'), ''),
    (bundle) => rm(join(bundle, 'package.json')),
    (bundle) => writeFile(join(bundle, 'bundle.json'), '{ "package.json": "'),
  ];
  for (const damage of damages) {
    const [bundle] = (await listBundles(root)) as [string];
    await damage(bundle);
    assert.deepEqual(await start(root), expected);
    const after = await listBundles(root);
    assert.equal(after.length, 1);
    assert.notEqual(after[0], bundle);
  }
});

test('where no bundle can be written the sources run', async (t) => {
  const root = await makeRepository(t);
  // A file in the folder's place stops the superuser too, whom no permission does.
  await writeFile(join(root, 'node_modules', '.cache'), '');
  for (const says of ['one', 'two']) {
    const result = await start(root);
    assert.deepEqual([result.says, result.place, result.worker], [says, 'sources', 'sources']);
    await changeText(join(root, 'packages', 'cli', 'src', 'main.ts'));
  }
});

test('bundles that nobody has used for a day go when one is made, those in use stay', async (t) => {
  const root = await makeRepository(t);
  const yesterday = new Date(Date.now() - 25 * 3_600_000);
  for (const name of ['unused-1', 'making-2', 'used-3']) {
    await mkdir(join(cacheOf(root), name), { recursive: true });
    if (name !== 'used-3') await utimes(join(cacheOf(root), name), yesterday, yesterday);
  }
  await start(root);
  const names = await listBundles(root);
  assert.equal(names.length, 2);
  assert.ok(names.includes(join(cacheOf(root), 'used-3')));

  const [bundle] = names.filter((name) => !name.endsWith('used-3')) as [string];
  await utimes(bundle, yesterday, yesterday);
  await start(root);
  assert.ok((await stat(bundle)).mtimeMs > yesterday.getTime(), 'a start marks its bundle as used');
});

test('sources that are no TypeScript are said to be at fault, and leave nothing behind', async (t) => {
  const root = await makeRepository(t);
  await writeFile(join(root, 'packages', 'runtime', 'src', 'worker.ts'), 'const = 1;\n');
  await assert.rejects(start(root), ({ code, stderr }: { readonly code: number; readonly stderr: string }) => {
    assert.equal(code, 1);
    assert.match(stderr, /^stillhouse: the sources cannot be bundled: .*worker\.ts:1:6: .*\[SOURCES_NOT_BUNDLED\]\n$/s);
    return true;
  });
  assert.deepEqual(await listBundles(root), []);
});

test('without packages the command says how to install them, and makes no folder for them', async (t) => {
  const root = await makeRepository(t);
  await rm(join(root, 'node_modules'), { recursive: true });
  await assert.rejects(start(root), ({ code, stderr }: { readonly code: number; readonly stderr: string }) => {
    assert.equal(code, 1);
    assert.match(stderr, /^stillhouse: the packages are not installed\. .*\[PACKAGES_NOT_INSTALLED\]\n$/);
    return true;
  });
  await assert.rejects(access(join(root, 'node_modules')), { code: 'ENOENT' });
});
