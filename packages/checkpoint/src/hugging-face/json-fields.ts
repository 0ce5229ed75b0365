import { readFile } from 'node:fs/promises';
import { StillhouseError } from '@stillhouse/errors';

export type JsonObject = Readonly<Record<string, unknown>>;

export const isJsonObject = (value: unknown): value is JsonObject =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/**
 * Reads a file that holds one JSON object; `undefined` if there is no such file.
 * @throws StillhouseError `code` when it holds anything else
 */
export async function readJsonObject(file: string, code: string): Promise<JsonObject | undefined> {
  let text: string;
  try {
    text = await readFile(file, 'utf8');
  } catch (cause) {
    if (['ENOENT', 'ENOTDIR'].includes((cause as NodeJS.ErrnoException).code ?? '')) return undefined;
    throw new StillhouseError({
      code: 'CHECKPOINT_FILE_UNREADABLE',
      where: file,
      problem: `the file cannot be opened (${(cause as NodeJS.ErrnoException).code ?? 'unknown reason'})`,
      cause,
    });
  }
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (cause) {
    throw new StillhouseError({ code, where: file, problem: `this is not JSON (${(cause as Error).message})`, cause });
  }
  if (!isJsonObject(parsed)) throw new StillhouseError({ code, where: file, problem: 'this is no JSON object' });
  return parsed;
}

/** Typed access to the fields of one JSON object; null counts as absent, as in Hugging Face configs. */
export interface Fields {
  has(key: string): boolean;
  /** A whole number of at least `least`. */
  count(key: string, fallback?: number, least?: number): number;
  /** A finite number above 0. */
  positive(key: string, fallback?: number): number;
  flag(key: string, fallback: boolean): boolean;
  text(key: string, fallback?: string): string;
}

/**
 * @param where names the object in errors
 * @throws StillhouseError (from its methods) CONFIG_VALUE_INVALID
 */
export function readFields(object: JsonObject, where: string): Fields {
  const has = (key: string) => object[key] !== undefined && object[key] !== null;
  const take = <T>(key: string, fallback: T | undefined, expected: string, fits: (value: unknown) => boolean): T => {
    if (!has(key) && fallback !== undefined) return fallback;
    const value = object[key];
    if (fits(value)) return value as T;
    throw configValueInvalid(where, key, expected, value);
  };
  return {
    has,
    count: (key, fallback, least = 1) =>
      take(key, fallback, `a whole number, at least ${least}`, (value) => {
        return Number.isSafeInteger(value) && (value as number) >= least;
      }),
    positive: (key, fallback) =>
      take(key, fallback, 'a number above 0', (value) => Number.isFinite(value) && (value as number) > 0),
    flag: (key, fallback) => take(key, fallback, 'true or false', (value) => typeof value === 'boolean'),
    text: (key, fallback) => take(key, fallback, 'a text', (value) => typeof value === 'string'),
  };
}

export const configValueInvalid = (where: string, key: string, expected: string, value: unknown) =>
  new StillhouseError({
    code: 'CONFIG_VALUE_INVALID',
    where,
    problem: `${key} does not make sense`,
    expected,
    got: value === undefined ? 'nothing' : JSON.stringify(value),
  });
