// Runs every *.test.ts of packages/, test/ and data/, or those whose path contains one of the arguments: bundles them and hands
// them to run-test-files.ts.
import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { dirname, join, relative, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import { bundleTests, type TestBundle } from './bundle-tests.ts';
import { slowTests } from './slow-tests.ts';

const root = dirname(dirname(fileURLToPath(import.meta.url)));

function listTests(folder: string): string[] {
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) return entry.name === 'node_modules' ? [] : listTests(path);
    return entry.name.endsWith('.test.ts') ? [path] : [];
  });
}

function findTestFiles(filters: readonly string[]): string[] {
  const folders = readdirSync(root, { withFileTypes: true })
    .filter((entry) => entry.isDirectory() && ['packages', 'test', 'data'].includes(entry.name))
    .map((entry) => join(root, entry.name));
  return folders
    .flatMap(listTests)
    .filter((path) => filters.length === 0 || filters.some((filter) => nameOf(path).includes(filter)))
    .sort((one, other) => placeOf(one) - placeOf(other) || (one < other ? -1 : 1));
}

function placeOf(path: string): number {
  const place = slowTests.indexOf(nameOf(path));
  return place < 0 ? slowTests.length : place;
}

function nameOf(path: string): string {
  return relative(root, path).split(sep).join('/');
}

/** Where tests cannot be bundled they run from their sources, so that the one at fault fails by itself. */
async function bundleOrSay(paths: readonly string[]): Promise<TestBundle | undefined> {
  try {
    return await bundleTests(root, paths);
  } catch (error) {
    console.log(`The tests run from their sources: ${(error as Error).message}`);
    return undefined;
  }
}

const filters = process.argv.slice(2);
const option = filters.find((filter) => filter.startsWith('-'));
if (option !== undefined) {
  console.error(`${option}: unknown option. Usage: npm test -- [PART_OF_PATH ...]`);
  process.exit(2);
}
const paths = findTestFiles(filters);
if (paths.length === 0) console.log(`no test file matches ${filters.join(', ') || 'packages/, test/ and data/'}`);
const bundle = await bundleOrSay(paths);
const [flags, folder, files] =
  bundle === undefined
    ? [['--import', 'tsx', join(root, 'scripts', 'run-test-files.ts')], root, paths]
    : [['--enable-source-maps', bundle.runner], bundle.folder, bundle.files];
const { status } = spawnSync(process.execPath, [...flags, folder, ...files], {
  stdio: 'inherit',
  env: { ...process.env, ...(bundle === undefined ? {} : { STILLHOUSE_TEST_SCRIPTS: bundle.folder }) },
});
await bundle?.remove();
process.exitCode = status ?? 1;
