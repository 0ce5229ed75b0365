import { StillhouseError } from '@stillhouse/errors';
import { flagOf, parseFlagValue, type SettingsTable } from '@stillhouse/settings';
import { type Command, Option } from 'commander';

type Field = SettingsTable[string];

/**
 * Gives a command one flag for each setting of a table, in kebab case. The flags have no default of their own: what
 * is not given stays open for the recipe.
 */
export function addFlags(command: Command, table: SettingsTable, plain: readonly (string | undefined)[] = []): void {
  for (const [key, field] of Object.entries(table)) {
    if (plain.includes(key)) continue;
    const flag = flagOf(key);
    if (field.kind === 'boolean') {
      command.addOption(new Option(flag, describe(field)));
      // The way back where the recipe says true.
      const negated = new Option(`--no-${flag.slice(2)}`, `not ${flag}`);
      command.addOption(field.default === true ? negated : negated.hideHelp());
    } else {
      const option = new Option(`${flag} <${placeholder(field)}>`, describe(field));
      command.addOption(
        option.argParser((value: string, before: unknown) => {
          const parsed = parseFlag(field, value, flag);
          return before === undefined || field.joins === undefined ? parsed : `${before}${field.joins}${parsed}`;
        }),
      );
    }
  }
}

/** The settings that were given as flags, by key. */
export function readFlags(command: Command, table: SettingsTable): Readonly<Record<string, unknown>> {
  const values = command.opts<Readonly<Record<string, unknown>>>();
  return Object.fromEntries(
    Object.keys(table)
      .filter((key) => values[key] !== undefined)
      .map((key) => [key, values[key]]),
  );
}

function parseFlag(field: Field, value: string, flag: string): unknown {
  if (/^--[a-z]/.test(value)) {
    throw new StillhouseError({
      code: 'SETTING_MISSING',
      where: flag,
      problem: `the value is missing, ${value} stands in its place`,
      remedy: `Give ${flag} <${placeholder(field)}>`,
    });
  }
  return parseFlagValue(field, value, flag);
}

function placeholder(field: Field): string {
  switch (field.kind) {
    case 'choice':
      return (field.choices ?? []).join('|');
    case 'number':
      return 'X';
    case 'integer':
      return 'N';
    case 'list':
      return 'A,B,...';
    case 'text':
    case 'boolean':
      return 'TEXT';
  }
}

function describe(field: Field): string {
  if (field.default === undefined || field.kind === 'boolean') return field.help;
  const shown = Array.isArray(field.default) ? field.default.join(',') : String(field.default);
  return `${field.help} (default: ${shown})`;
}
