import { StillhouseError } from '@stillhouse/errors';

/** The JSON of one line. */
export type JsonObject = Readonly<Record<string, unknown>>;

export const isObject = (value: unknown): value is JsonObject =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** Whether a key says anything: null is as good as absent. */
export const isPresent = (value: unknown): boolean => value !== undefined && value !== null;

/** A text that may be left out. @throws StillhouseError ROW_TYPE */
export function readText<Key extends string>(
  row: JsonObject,
  key: Key,
  where: string,
  allowNumber = false,
): { readonly [K in Key]?: string } {
  const value = row[key];
  if (!isPresent(value)) return {};
  const text = allowNumber && typeof value === 'number' ? String(value) : value;
  return { [key]: requireText(text, key, where, allowNumber) } as { readonly [K in Key]?: string };
}

/** @throws StillhouseError ROW_TYPE */
export function requireText(value: unknown, name: string, where: string, allowNumber = false): string {
  if (typeof value !== 'string') refuseType(where, name, allowNumber ? 'a text or a number' : 'a text', value);
  return value;
}

/** A value as errors show it: its kind, or itself where that is short. */
export function nameKind(value: unknown): string {
  if (value === undefined) return 'nothing';
  if (value === null) return 'null';
  if (Array.isArray(value)) return value.length === 0 ? 'an empty list' : 'a list';
  if (typeof value === 'object') return 'an object';
  const shown = JSON.stringify(value);
  return shown.length > 40 ? `${shown.slice(0, 40)}…` : shown;
}

/** @throws StillhouseError ROW_TYPE */
export function refuseType(where: string, name: string, expected: string, value: unknown): never {
  throw new StillhouseError({
    code: 'ROW_TYPE',
    where,
    problem: `${name} is of the wrong type`,
    expected,
    got: nameKind(value),
  });
}
