import type { LoadedCommand } from './command.ts';

export interface ListedCommand {
  /** The words that call it: `cache build`. */
  readonly name: string;
  readonly summary: string;
  /** What follows the name in the usage line. */
  readonly usage: string;
  readonly hasRecipe: boolean;
  /** Packages are loaded only for the command that runs: ONNX Runtime and Arrow take their time. */
  load(): Promise<LoadedCommand>;
}

export const COMMAND_GROUPS: Readonly<Record<string, string>> = {
  cache: 'build, inspect, check, extend, share and export teacher caches',
};

export const COMMANDS: readonly ListedCommand[] = [
  {
    name: 'cache plan',
    summary: 'score a pilot and say which labels are worth their bytes',
    usage: '--teacher DIR --data FILE.jsonl --student DIR [--budget BYTES] [options]',
    hasRecipe: true,
    load: async () => (await import('../commands/cache-plan.ts')).cachePlan,
  },
  {
    name: 'cache build',
    summary: 'run the teacher over a data set and keep what students need',
    usage: '--teacher DIR --data FILE.jsonl --out CACHE [options]',
    hasRecipe: true,
    load: async () => (await import('../commands/cache-build.ts')).cacheBuild,
  },
  {
    name: 'cache info',
    summary: 'say what a cache holds',
    usage: 'CACHE [options]',
    hasRecipe: false,
    load: async () => (await import('../commands/cache-info.ts')).cacheInfo,
  },
  {
    name: 'cache quality',
    summary: "hold a cache's labels against its teacher's true distribution, as a student sees it",
    usage: 'CACHE --student DIR [--teacher DIR] [options]',
    hasRecipe: true,
    load: async () => (await import('../commands/cache-quality.ts')).cacheQuality,
  },
  {
    name: 'cache verify',
    summary: 'hash every file of a cache again and check every rule of the format',
    usage: 'CACHE [options]',
    hasRecipe: false,
    load: async () => (await import('../commands/cache-verify.ts')).cacheVerify,
  },
  {
    name: 'cache merge',
    summary: 'join the parts that several machines have built',
    usage: 'CACHE [PARTS...] [options]',
    hasRecipe: false,
    load: async () => (await import('../commands/cache-merge.ts')).cacheMerge,
  },
  {
    name: 'cache repair',
    summary: 'compute anew what is damaged or missing, to the same bytes',
    usage: 'CACHE [--teacher DIR] [--data FILE.jsonl,...] [options]',
    hasRecipe: false,
    load: async () => (await import('../commands/cache-repair.ts')).cacheRepair,
  },
  {
    name: 'cache extend',
    summary: 'add rows, labels, layers or a larger k to a cache without computing the rest again',
    usage: 'CACHE (--in-place | --out DIR) [--teacher DIR] [--data FILE.jsonl] [options]',
    hasRecipe: true,
    load: async () => (await import('../commands/cache-extend.ts')).cacheExtend,
  },
  {
    name: 'cache export',
    summary: 'write a cache for other tools',
    usage: 'CACHE --format parquet|distillkit|axolotl|trl|datasets --out DIR [options]',
    hasRecipe: false,
    load: async () => (await import('../commands/cache-export.ts')).cacheExport,
  },
  {
    name: 'cache push',
    summary: 'bring a cache to a remote: a folder, S3 storage, Hugging Face',
    usage: 'CACHE REMOTE[#NAME] [options]',
    hasRecipe: false,
    load: async () => (await import('../commands/cache-push.ts')).cachePush,
  },
  {
    name: 'cache pull',
    summary: 'fetch a cache, or some groups of it, from a remote: also from a web server',
    usage: 'REMOTE[#NAME] CACHE [--groups topk,...] [options]',
    hasRecipe: false,
    load: async () => (await import('../commands/cache-pull.ts')).cachePull,
  },
  {
    name: 'cache ls',
    summary: 'list the caches of a remote',
    usage: 'REMOTE [options]',
    hasRecipe: false,
    load: async () => (await import('../commands/cache-ls.ts')).cacheLs,
  },
  {
    name: 'cache import',
    summary: "make a cache of another tool's labels",
    usage: '--format distillkit|axolotl --from DIR --out CACHE --teacher-name NAME --vocab-size N [options]',
    hasRecipe: false,
    load: async () => (await import('../commands/cache-import.ts')).cacheImport,
  },
  {
    name: 'train',
    summary: 'train a student from a cache',
    usage: '--cache CACHE --student DIR --out DIR [options]',
    hasRecipe: true,
    load: async () => (await import('../commands/train.ts')).train,
  },
  {
    name: 'sweep',
    summary: 'train many students from one cache, measure them and compare them in one report',
    usage: 'RECIPE.json --out DIR [--only NAME,...] [--partition i/n] [options]',
    hasRecipe: false,
    load: async () => (await import('../commands/sweep.ts')).sweep,
  },
  {
    name: 'sweep report',
    summary: 'write the report of a sweep anew, as far as it is',
    usage: 'DIR [options]',
    hasRecipe: false,
    load: async () => (await import('../commands/sweep-report.ts')).sweepReport,
  },
  {
    name: 'tune-temperature',
    summary: 'train short runs at several temperatures and say which is best, and how sure that is',
    usage: '--cache CACHE --student DIR --eval-split NAME --out DIR [--temperatures 1,2,4] [--seeds 1,2] [options]',
    hasRecipe: true,
    load: async () => (await import('../commands/tune-temperature.ts')).tuneTemperature,
  },
  {
    name: 'eval',
    summary: 'measure a model on held-out rows or questions',
    usage: '--model DIR --task kd|exact-match [--cache CACHE] [--data FILE.jsonl] --out FILE.json [options]',
    hasRecipe: true,
    load: async () => (await import('../commands/eval.ts')).evaluate,
  },
  {
    name: 'init-student',
    summary: 'make a new student of a given size with seeded random weights',
    usage: '--like DIR [--scale X | --layers N --hidden N ...] --seed N --out DIR [options]',
    hasRecipe: true,
    load: async () => (await import('../commands/init-student.ts')).initialiseStudent,
  },
];
