import { defineConfig, type Plugin } from 'vitest/config';
import { coverageGaps } from './scripts/coverage-gaps.ts';
import { tallyReporter } from './scripts/tally-reporter.ts';

const include = ['{packages,test,data}/**/*.test.ts'];
const exclude = ['**/node_modules/**'];
const longestMs = 15 * 60_000;

/** They measure the memory of their process, which nothing else may have used before. */
const inTheirOwnProcess = [
  'packages/student-trainer/src/step/long-rows.test.ts',
  'packages/teacher-cache/src/codecs/hostile-arrow.test.ts',
];

/** The engine's worker thread too starts from the bundle that scripts/bundle-for-tests.ts makes. */
const workerThreadFromBundle: Plugin = {
  name: 'worker-thread-from-bundle',
  transform: (code, id) =>
    id.endsWith('/packages/runtime/src/worker-link.ts')
      ? code.replace('import.meta.url', JSON.stringify(process.env.STILLHOUSE_TEST_WORKER_LINK))
      : undefined,
};

export default defineConfig({
  plugins: [workerThreadFromBundle],
  test: {
    globalSetup: ['scripts/bundle-for-tests.ts'],
    reporters: ['default', tallyReporter, coverageGaps],
    // Two long-lived processes that load each module once: most of what a small file takes is to load what it tests.
    pool: 'forks',
    maxWorkers: 2,
    projects: [
      { extends: true, test: { name: 'shared', include, exclude: [...exclude, ...inTheirOwnProcess], isolate: false } },
      { extends: true, test: { name: 'own', include: inTheirOwnProcess } },
    ],
    testTimeout: longestMs,
    hookTimeout: longestMs,
    coverage: {
      include: ['packages/*/src/**/*.ts'],
      exclude: ['packages/*/src/testing/**', 'packages/{testing,gradient-check}/**'],
      reporter: ['text-summary'],
    },
  },
});
