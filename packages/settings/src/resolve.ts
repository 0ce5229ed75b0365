import { StillhouseError } from '@stillhouse/errors';
import * as v from 'valibot';
import type { Field, SettingsOf, SettingsTable } from './fields.ts';

/** `hiddenWeight` as a flag: `--hidden-weight`. */
export function flagOf(key: string): string {
  return `--${key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;
}

/**
 * The whole set of settings: what is given, checked, and defaults for the rest.
 * @param where the source of a key for the message: a flag or a recipe file
 * @throws StillhouseError SETTING_UNKNOWN, SETTING_INVALID
 */
export function resolveSettings<const Table extends SettingsTable>(
  table: Table,
  given: Readonly<Record<string, unknown>>,
  where: (key: string) => string = flagOf,
): SettingsOf<Table> {
  for (const key of Object.keys(given)) {
    if (table[key] === undefined) {
      throw new StillhouseError({
        code: 'SETTING_UNKNOWN',
        where: where(key),
        problem: 'there is no such setting',
        expected: `one of ${Object.keys(table).join(', ')}`,
        got: key,
      });
    }
  }
  const entries = Object.entries(table).map(([key, field]) => {
    const value = given[key];
    return [key, value === undefined ? field.default : check(field, value, where(key))];
  });
  return Object.fromEntries(entries) as SettingsOf<Table>;
}

function check(field: Field<unknown>, value: unknown, where: string): unknown {
  const result = v.safeParse(field.schema, value);
  if (result.success) return result.output;
  throw new StillhouseError({
    code: 'SETTING_INVALID',
    where,
    problem: 'the value is not allowed',
    expected: result.issues[0].message,
    got: JSON.stringify(value),
  });
}

/**
 * Reads a flag's text as its field wants it; bounds are checked by `resolveSettings`.
 * @throws StillhouseError SETTING_INVALID when a number is asked for and the text is none
 */
export function parseFlagValue(field: Field<unknown>, value: string, where: string): unknown {
  const toNumber = (word: string) => {
    const parsed = Number(word);
    if (word.trim() === '' || Number.isNaN(parsed)) {
      throw new StillhouseError({
        code: 'SETTING_INVALID',
        where,
        problem: 'the value is not allowed',
        expected: 'a number',
        got: JSON.stringify(word),
      });
    }
    return parsed;
  };
  switch (field.kind) {
    case 'number':
    case 'integer':
      return toNumber(value);
    case 'list':
      return value.split(',').map((word) => (/^-?\d+(\.\d+)?$/.test(word.trim()) ? Number(word) : word.trim()));
    case 'boolean':
      return value === 'true' ? true : value === 'false' ? false : value;
    case 'text':
    case 'choice':
      return value;
  }
}

/**
 * A setting that a command cannot do without.
 * @throws StillhouseError SETTING_MISSING
 */
export function requireSetting<Key extends string>(
  settings: { readonly [key in Key]: string | undefined },
  key: Key,
  placeholder: string,
): string {
  const value = settings[key];
  if (value !== undefined) return value;
  throw new StillhouseError({
    code: 'SETTING_MISSING',
    where: flagOf(key),
    problem: 'the setting is required',
    remedy: `Give ${flagOf(key)} ${placeholder}`,
  });
}
