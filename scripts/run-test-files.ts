// Runs the test files that are named after the folder they lie in, the repository's or a bundle's, and prints what each test did.
// The last line printed is always `N passed, N failed`, with `, N skipped` when there are any. Started by run-tests.ts.
import { relative, resolve, sep } from 'node:path';
import { finished } from 'node:stream/promises';
import { run } from 'node:test';
import { spec } from 'node:test/reporters';

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

const [folder, ...files] = process.argv.slice(2) as [string, ...string[]];

const slashed = (path: string) => path.replace(/\.js$/, '.ts').split(sep).join('/');
const names = files.map((file) => slashed(relative(folder, file))).sort((a, b) => b.length - a.length);

/** A file's name in the repository. Node.js says a bundled file by its own path or, where it has a source map, by that of its source. */
const nameOf = (file: string) => names.find((name) => slashed(file).endsWith(`/${name}`)) ?? file;

const tally: Tally = { passed: 0, failed: 0, skipped: [], problems: [] };
if (files.length > 0) {
  const count = createCounter(tally);
  const events = run({ files, concurrency: filesAtOnce, timeout: fileTimeoutMs });
  events.on('test:pass', (event) => count(event as TestEvent, true));
  events.on('test:fail', (event) => count(event as TestEvent, false));
  const report = events.compose(new spec());
  report.pipe(process.stdout);
  await finished(report);
}
if (tally.passed + tally.failed === 0) tally.problems.push('no test ran');

for (const line of tally.skipped) console.log(`skipped: ${line}`);
for (const line of tally.problems) console.log(`problem: ${line}`);
const skippedPart = tally.skipped.length === 0 ? '' : `, ${tally.skipped.length} skipped`;
console.log(`${tally.passed} passed, ${tally.failed} failed${skippedPart}`);
process.exitCode = tally.failed > 0 || tally.problems.length > 0 ? 1 : 0;
