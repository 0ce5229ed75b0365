// Runs every *.test.ts of packages/, test/ and data/, or those whose path contains one of the arguments.
// The last line printed is always `N passed, N failed`, with `, N skipped` when there are any.
import { readdirSync } from 'node:fs';
import { dirname, join, relative, resolve, sep } from 'node:path';
import { finished } from 'node:stream/promises';
import { run } from 'node:test';
import { spec } from 'node:test/reporters';
import { fileURLToPath } from 'node:url';
import { bundleScripts } from './bundle-scripts.ts';
import { slowTests } from './slow-tests.ts';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const fileTimeoutMs = 15 * 60_000;
const filesAtOnce = 2;

interface TestEvent {
  readonly name: string;
  readonly nesting: number;
  readonly file?: string;
  readonly skip?: string | boolean;
  readonly todo?: string | boolean;
  readonly details?: { readonly type?: string; readonly error?: unknown };
}

interface Tally {
  passed: number;
  failed: number;
  readonly skipped: string[];
  readonly problems: string[];
}

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

/**
 * Counts leaves: a test with subtests stands for nothing of its own, unless it fails by itself. A file's own event
 * comes only when the file has no tests or dies outside of them; both are failures.
 */
function createCounter(tally: Tally): (event: TestEvent, ok: boolean) => void {
  const openDepths = new Map<string, Set<number>>();
  return (event, ok) => {
    const file = event.file ?? '';
    const depths = openDepths.get(file) ?? new Set<number>();
    openDepths.set(file, depths);
    const hasChildren = depths.delete(event.nesting + 1);
    depths.add(event.nesting);

    if (event.nesting === 0 && resolve(event.name) === file) {
      tally.failed += 1;
      if (ok) tally.problems.push(`${nameOf(file)}: holds no test`);
      return;
    }
    const skip = event.skip ?? event.todo;
    if (skip !== undefined && skip !== false) {
      tally.skipped.push(`${nameOf(file)}: ${event.name}${typeof skip === 'string' ? `: ${skip}` : ''}`);
      return;
    }
    const isGroup = hasChildren || event.details?.type === 'suite';
    if (ok) {
      if (!isGroup) tally.passed += 1;
      return;
    }
    const error = event.details?.error as { readonly failureType?: string } | undefined;
    if (!isGroup || error?.failureType !== 'subtestsFailed') tally.failed += 1;
  };
}

async function runTestFiles(files: readonly string[]): Promise<Tally> {
  const tally: Tally = { passed: 0, failed: 0, skipped: [], problems: [] };
  const count = createCounter(tally);
  const bundle = await bundleScripts(root);
  if (bundle !== undefined) process.env.STILLHOUSE_TEST_SCRIPTS = bundle.folder;
  const events = run({ files: [...files], concurrency: filesAtOnce, timeout: fileTimeoutMs });
  events.on('test:pass', (event) => count(event as TestEvent, true));
  events.on('test:fail', (event) => count(event as TestEvent, false));
  const report = events.compose(new spec());
  report.pipe(process.stdout);
  await finished(report);
  await bundle?.remove();
  return tally;
}

const filters = process.argv.slice(2);
const option = filters.find((filter) => filter.startsWith('-'));
if (option !== undefined) {
  console.error(`${option}: unknown option. Usage: npm test -- [PART_OF_PATH ...]`);
  process.exit(2);
}
const files = findTestFiles(filters);
const tally: Tally =
  files.length === 0 ? { passed: 0, failed: 0, skipped: [], problems: [] } : await runTestFiles(files);
if (files.length === 0)
  tally.problems.push(`no test file matches ${filters.join(', ') || 'packages/, test/ and data/'}`);
else if (tally.passed + tally.failed === 0) tally.problems.push('no test ran');

for (const line of tally.skipped) console.log(`skipped: ${line}`);
for (const line of tally.problems) console.log(`problem: ${line}`);
const skippedPart = tally.skipped.length === 0 ? '' : `, ${tally.skipped.length} skipped`;
console.log(`${tally.passed} passed, ${tally.failed} failed${skippedPart}`);
process.exitCode = tally.failed > 0 || tally.problems.length > 0 ? 1 : 0;
