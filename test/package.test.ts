import assert from 'node:assert/strict';
import { type ExecFileOptions, execFile } from 'node:child_process';
import { cp, mkdir, mkdtemp, readFile, realpath, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { promisify } from 'node:util';
import { runNode, unless } from '@stillhouse/testing';
import { afterAll, beforeAll, describe, test } from 'vitest';

const root = fileURLToPath(new URL('..', import.meta.url));
const tsc = join(root, 'node_modules', 'typescript', 'bin', 'tsc');
const typeRoots = join(root, 'node_modules', '@types');

type Outcome = { readonly stdout: string; readonly stderr: string };

/** As a person runs it: nothing of npm's or of the tests' environment is set. */
async function run(
  file: string,
  args: readonly string[],
  cwd: string,
  options: ExecFileOptions = {},
): Promise<Outcome> {
  const env = Object.fromEntries(
    Object.entries(process.env).filter(([key]) => !/^(npm_|NODE_|ONNXRUNTIME)/i.test(key)),
  );
  const shell = process.platform === 'win32' && file !== process.execPath; // npm is a script there
  return promisify(execFile)(file, args, { encoding: 'utf8', shell, ...options, cwd, env }) as Promise<Outcome>;
}

async function hasRegistry(): Promise<boolean> {
  return run('npm', ['ping'], root, { timeout: 20_000 }).then(
    () => true,
    () => false,
  );
}

/** The TypeScript of docs/library.md, by the file names in its first lines. */
async function readExamples(): Promise<ReadonlyMap<string, string>> {
  const text = await readFile(join(root, 'docs', 'library.md'), 'utf8');
  return new Map([...text.matchAll(/```ts\n\/\/ (\S+)\n(.*?)```/gs)].map(([, name, code]) => [name!, code!]));
}

const obstacle = !(await hasRegistry()) && 'the npm registry is not reachable';
const examples = await readExamples();

describe('the package', unless(obstacle), () => {
  let folder = '';
  let tarball = '';
  let command = '';

  beforeAll(async () => {
    const made = await runNode([join(root, 'scripts', 'pack.ts')], { asSource: true });
    assert.equal(made.code, 0, made.stderr);
    folder = await realpath(await mkdtemp(join(tmpdir(), 'package-')));
    tarball = join(root, 'out', 'pack', made.stdout.trim().split('\n').at(-1)!);
    command = join(folder, 'node_modules', 'stillhouse', 'dist', 'stillhouse.js');
    await writeFile(join(folder, 'package.json'), '{ "name": "empty", "private": true, "type": "module" }\n');
    const rows = await readFile(join(root, 'data/demo/test.jsonl'), 'utf8');
    await writeFile(join(folder, 'rows.jsonl'), `${rows.split('\n').slice(0, 8).join('\n')}\n`);
    await mkdir(join(folder, 'teacher'));
    await cp(join(root, 'data/demo/teacher'), join(folder, 'teacher'), { recursive: true });
    for (const [name, code] of examples) await writeFile(join(folder, name), code);
  });

  afterAll(() => rm(folder, { recursive: true, force: true }));

  test('installs, and downloads nothing of CUDA', async () => {
    await run('npm', ['install', '--prefer-offline', '--no-audit', '--no-fund', tarball], folder);
    const libraries = join(folder, 'node_modules/onnxruntime-node/bin/napi-v6', process.platform, process.arch);
    const cuda = await stat(join(libraries, 'libonnxruntime_providers_cuda.so')).catch(() => undefined);
    assert.equal(cuda?.size ?? 0, 0);
    const { stdout, stderr } = await run('npx', ['--no-install', 'stillhouse', '--version'], folder);
    assert.equal(stdout, '0.1.0\n');
    assert.equal(stderr, '');
  });

  test('starts in 0.3 s of processor time', async () => {
    const script = `
      const { cpuUsage, argv } = process;
      process.argv = [argv[0], 'stillhouse', '--help'];
      process.on('exit', () => { const { user, system } = cpuUsage(); console.error(user + system); });
      await import(${JSON.stringify(pathToFileURL(command).href)});`;
    const starts = [];
    for (let i = 0; i < 3; i++) {
      const { stderr } = await run(process.execPath, ['--input-type=module', '-e', script], folder);
      starts.push(Number(stderr) / 1e6);
    }
    assert.ok(Math.min(...starts) <= 0.3, `${starts.join(', ')} s`);
  });

  test('its entries throw one and the same kind of error', async () => {
    const script = `
      import { isStillhouseError } from 'stillhouse/errors';
      import { openCache } from 'stillhouse/teacher-cache';
      const error = await openCache('nowhere').catch((reason) => reason);
      console.log(isStillhouseError(error, 'CACHE_NOT_FOUND'));`;
    const { stdout } = await run(process.execPath, ['--input-type=module', '-e', script], folder);
    assert.equal(stdout, 'true\n');
  });

  test('builds a cache, trains from it and verifies it', async () => {
    const stillhouse = (words: string) => run(process.execPath, [command, ...words.split(' ')], folder);
    await stillhouse('cache build --teacher teacher --data rows.jsonl --out built --top-k 8');
    await stillhouse('train --cache built --student teacher --out trained --steps 2 --batch-tokens 256');
    const { stdout } = await stillhouse('cache verify built');
    assert.match(stdout, /no problem found/);
  });

  test('the examples of docs/library.md are right by its types', async () => {
    const options = '--ignoreConfig --noEmit --strict --target ES2022 --module NodeNext --types node';
    const args = [tsc, ...options.split(' '), '--typeRoots', typeRoots, ...examples.keys()];
    const { stdout } = await run(process.execPath, args, folder).catch((error: Outcome) => error);
    assert.equal(stdout, '');
    await run(
      process.execPath,
      [...args].filter((one) => one !== '--noEmit'),
      folder,
    );
  });

  for (const name of examples.keys()) {
    test(`the example ${name} runs`, async () => {
      const { stdout } = await run(process.execPath, [name.replace(/\.ts$/, '.js')], folder);
      assert.notEqual(stdout, '');
    });
  }

  test('teacher-cache loads neither ONNX Runtime nor koffi', async () => {
    const without = join(folder, 'without');
    await cp(join(folder, 'node_modules'), join(without, 'node_modules'), {
      recursive: true,
      filter: (path) => !/node_modules[\\/](onnxruntime-|koffi|@koromix|protobufjs)/.test(path),
    });
    for (const name of ['copy.js', 'package.json']) await cp(join(folder, name), join(without, name));
    await cp(join(folder, 'built'), join(without, 'cache'), { recursive: true });
    const { stdout } = await run(process.execPath, ['copy.js'], without);
    assert.match(stdout, /labels/);
  });
});
