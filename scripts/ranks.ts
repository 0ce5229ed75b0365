/**
 * Who may import what. The one table that scripts/check-boundaries.ts enforces; ARCHITECTURE.md gives the reasons.
 * A package imports packages of lower rank only: never a higher one, never one of its own rank.
 */
export const ranks: Readonly<Record<string, number>> = {
  errors: 0,
  'float-formats': 0,
  'tensor-types': 0,
  settings: 1,
  'durable-files': 1,
  'onnx-graph': 1,
  'seeded-random': 1,
  statistics: 1,
  runtime: 2,
  checkpoint: 2,
  tokenizer: 2,
  report: 2,
  'teacher-cache': 2,
  decoder: 3,
  rows: 3,
  'cache-remote': 3,
  'cache-exchange': 3,
  'model-runner': 4,
  objectives: 4,
  tasks: 4,
  'teacher-inference': 5,
  'student-trainer': 5,
  evaluation: 5,
  experiments: 6,
  cli: 7,
};

/**
 * The private packages for tests and their ranks. Each imports lower ranks only, as the others do. Tests of packages of
 * its rank and above import it, nothing else does: so no test reaches its own rank or a higher one by way of it.
 */
export const testPackages: Readonly<Record<string, number>> = {
  testing: 1,
  'gradient-check': 3,
};

/** Pairs whose separation is a promise of its own, with the reason that the message gives. */
export const separated: readonly { readonly packages: readonly [string, string]; readonly reason: string }[] = [
  {
    packages: ['teacher-inference', 'student-trainer'],
    reason: 'training never reaches a teacher; what passes between the phases is a teacher cache',
  },
];

/** Libraries from npm and the packages that may import them: one owner for each native or format library. */
export const libraryOwners: Readonly<Record<string, readonly string[]>> = {
  protobufjs: ['onnx-graph'],
  'onnxruntime-node': ['runtime'],
  koffi: ['runtime'],
  '@huggingface/tokenizers': ['tokenizer'],
  '@huggingface/jinja': ['tokenizer'],
  'apache-arrow': ['teacher-cache'],
  '@hpcc-js/wasm-zstd': ['teacher-cache'],
  'ml-matrix': ['teacher-inference'],
  hyparquet: ['cache-exchange'],
  'hyparquet-writer': ['cache-exchange'],
  '@aws-sdk/client-s3': ['cache-remote'],
  '@huggingface/hub': ['cache-remote'],
  'p-queue': ['cache-remote'],
  vega: ['report'],
  'vega-lite': ['report'],
  commander: ['cli'],
  'cli-progress': ['cli'],
  valibot: ['settings', 'cli'],
  // Not a format but the loader of TypeScript, needed wherever a thread or a process starts.
  tsx: ['cli', 'runtime', 'testing'],
};

/** Libraries that every test may import. The package `testing` lists them for all. */
export const testLibraries: readonly string[] = ['fast-check', 'vitest'];
