/**
 * The test files that take the most processor time, the longest first. They are started first, so that none of them is
 * left alone at the end of a run while the other core is idle. A file that takes more than ten seconds belongs here.
 */
export const slowTests: readonly string[] = [
  'packages/teacher-cache/src/write/large-cache.test.ts',
  'packages/cli/src/sweep/sweep.test.ts',
  'packages/teacher-cache/src/check/mutations.test.ts',
  'packages/cli/src/train-watching.test.ts',
  'test/wrong-inputs.test.ts',
  'packages/cli/src/end-to-end.test.ts',
  'packages/teacher-inference/src/cache-extend.test.ts',
  'test/slurm/slurm.test.ts',
  'packages/cli/src/recipes.test.ts',
];
