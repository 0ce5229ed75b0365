import { createHash } from 'node:crypto';
import type { Overrides } from './sweep-axes.ts';

/** Names of files may have 255 bytes; a checkpoint's temporary name is longer than its folder's. */
const LONGEST_NAME = 100;
const HASH_LENGTH = 8;

/**
 * A name for each run, of what it sets: `alpha=0.5_temperature=2`. A run's name does not depend on the order of
 * settings or of runs, nor on the others, but where paths would be the same by their last part or two names by their
 * letters. It is a file name on all systems.
 */
export function nameRuns(runs: readonly Overrides[]): readonly string[] {
  const shorten = shortenPaths(runs);
  const names = runs.map((overrides) => {
    const keys = Object.keys(overrides).sort();
    const words = keys.map((key) => `${key}=${clean(shorten(key, overrides[key]))}`);
    return words.length === 0 ? 'base' : words.join('_');
  });
  const count = new Map<string, number>();
  // Some file systems do not tell capitals from small letters.
  for (const name of names) count.set(name.toLowerCase(), (count.get(name.toLowerCase()) ?? 0) + 1);
  return names.map((name, at) => {
    const isAlone = count.get(name.toLowerCase()) === 1;
    if (isAlone && name.length <= LONGEST_NAME) return name;
    return `${name.slice(0, LONGEST_NAME - HASH_LENGTH - 1)}-${hash(runs[at]!)}`;
  });
}

const clean = (word: string): string => word.replace(/[^A-Za-z0-9.=+-]+/g, '-').replace(/^-+(?=.)|-+$/g, '');

function hash(overrides: Overrides): string {
  const sorted = Object.entries(overrides).sort(([a], [b]) => (a < b ? -1 : 1));
  return createHash('sha256').update(JSON.stringify(sorted)).digest('hex').slice(0, HASH_LENGTH);
}

/** Paths by as many of their last parts as tell those of one setting from each other; other values as they are. */
function shortenPaths(runs: readonly Overrides[]): (key: string, value: unknown) => string {
  const depths = new Map<string, number>();
  const keys = new Set(runs.flatMap((run) => Object.keys(run)));
  for (const key of keys) {
    const paths = [...new Set(runs.map((run) => run[key]).filter(isPath))];
    let depth = 1;
    while (depth < 32 && new Set(paths.map((path) => lastParts(path, depth))).size < paths.length) depth++;
    depths.set(key, depth);
  }
  return (key, value) => {
    if (isPath(value)) return lastParts(value, depths.get(key)!);
    return Array.isArray(value) ? value.join('+') : String(value);
  };
}

const isPath = (value: unknown): value is string => typeof value === 'string' && /[\\/]/.test(value);

const lastParts = (path: string, depth: number): string =>
  path
    .split(/[\\/]+/)
    .filter((part) => part !== '' && part !== '.')
    .slice(-depth)
    .join('-');
