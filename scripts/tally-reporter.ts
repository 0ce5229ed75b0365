// Says each skipped test with its reason, and on the last line of a run `N passed, N failed`, with `, N skipped` when
// there are any.
import { writeSync } from 'node:fs';
import { relative, sep } from 'node:path';
import type { Reporter, TestCase } from 'vitest/node';

/** To be named behind vitest's own reporter. */
export const tallyReporter: Reporter = {
  onTestRunEnd(modules, unhandledErrors) {
    const tests = modules.flatMap((module) => [...module.children.allTests()]);
    const inState = (state: string) => tests.filter((test) => test.result().state === state);
    const skipped = inState('skipped').filter((test) => !isFilteredOut(test));
    // Files and groups that failed outside of their tests; a file without a test is one.
    const groups = modules.flatMap((module) => [module, ...module.children.allSuites()]);
    const broken = groups.filter((group) => group.errors().length > 0);
    const failed = inState('failed').length + broken.length + unhandledErrors.length;
    for (const test of skipped) console.log(`skipped: ${pathOf(test)}: ${test.fullName}: ${reasonOf(test)}`);
    if (tests.length === 0) console.log('problem: no test ran');
    const skippedPart = skipped.length === 0 ? '' : `, ${skipped.length} skipped`;
    // scripts/run-vitest.js then says nothing.
    process.env.STILLHOUSE_TALLY = 'said';
    // Behind all that vitest still has to say. What fails without a test, such as the global set-up, counts as one.
    process.once('exit', (code) => {
      const failures = failed === 0 && code !== 0 ? 1 : failed;
      writeSync(process.stdout.fd, `${inState('passed').length} passed, ${failures} failed${skippedPart}\n`);
    });
  },
};

/** By `-t`, which skips all other names. */
function isFilteredOut(test: TestCase): boolean {
  const pattern = test.project.config.testNamePattern;
  return pattern !== undefined && !pattern.test(test.fullName.replaceAll(' > ', ' '));
}

function reasonOf(test: TestCase): string {
  const result = test.result();
  return test.meta().obstacle ?? (result.state === 'skipped' ? result.note : undefined) ?? 'no reason given';
}

function pathOf({ project, module }: TestCase): string {
  return relative(project.config.root, module.moduleId).split(sep).join('/');
}
