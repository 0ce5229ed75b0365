import { StillhouseError } from '@stillhouse/errors';
import { resolveSettings } from '@stillhouse/settings';
import { RUN_SETTINGS } from './sweep-settings.ts';

/** What a run sets differently from the others, by the names of training settings. */
export type Overrides = Readonly<Record<string, unknown>>;

/** What must be the same for all runs, or their figures could not be compared. */
const SAME_FOR_ALL: readonly string[] = ['evalEvery', 'evalCache', 'evalSplit', 'evalLimit'];

/**
 * The runs of a recipe's `sweep`: every combination of the grid's values, the last key changing fastest, then the
 * list's. Every value is checked by itself.
 * @param place where the value of `sweep` stands, for messages
 * @throws StillhouseError SWEEP_INVALID, SWEEP_SETTING_FIXED, SETTING_UNKNOWN, SETTING_INVALID
 */
export function expandAxes(sweep: unknown, place: string): readonly Overrides[] {
  const { grid, list, ...unknown } = requireObject(sweep, place);
  const stranger = Object.keys(unknown)[0];
  if (stranger !== undefined) {
    refuse(`${place}.${stranger}`, 'there is no such key', 'grid, list or both', stranger);
  }
  if (grid === undefined && list === undefined) {
    refuse(place, 'it names no runs', '{"grid": {"temperature": [1, 2]}} or {"list": [{"temperature": 1}]}', '{}');
  }
  return [
    ...(grid === undefined ? [] : expandGrid(requireObject(grid, `${place}.grid`), `${place}.grid`)),
    ...(list === undefined ? [] : readList(list, `${place}.list`)),
  ];
}

function expandGrid(grid: Readonly<Record<string, unknown>>, place: string): readonly Overrides[] {
  const axes = Object.entries(grid).map(([key, values]) => {
    const where = `${place}.${key}`;
    if (!Array.isArray(values) || values.length === 0) {
      return refuse(where, 'it has no values', 'a list with at least one value', JSON.stringify(values));
    }
    return values.map((value, at) => readValue(key, value, `${where}[${at}]`));
  });
  if (axes.length === 0) refuse(place, 'it is empty', 'settings with lists of values', '{}');
  return axes.reduce<readonly Overrides[]>(
    (runs, axis) => runs.flatMap((run) => axis.map((value) => ({ ...run, ...value }))),
    [{}],
  );
}

function readList(list: unknown, place: string): readonly Overrides[] {
  if (!Array.isArray(list) || list.length === 0) {
    return refuse(place, 'it has no runs', 'a list of objects with settings', JSON.stringify(list));
  }
  return list.map((item, at) => {
    const where = `${place}[${at}]`;
    const values = Object.entries(requireObject(item, where)).map(([key, value]) =>
      readValue(key, value, `${where}.${key}`),
    );
    return Object.assign({}, ...values) as Overrides;
  });
}

function readValue(key: string, value: unknown, where: string): Overrides {
  if (SAME_FOR_ALL.includes(key)) {
    throw new StillhouseError({
      code: 'SWEEP_SETTING_FIXED',
      where,
      problem: 'the setting must be the same for all runs, or they could not be compared',
      remedy: `Put ${key} beside "sweep" in the recipe`,
    });
  }
  const resolved = resolveSettings(RUN_SETTINGS, { [key]: value }, () => where) as Overrides;
  return { [key]: resolved[key] };
}

function requireObject(value: unknown, where: string): Readonly<Record<string, unknown>> {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) {
    return value as Readonly<Record<string, unknown>>;
  }
  return refuse(where, 'it is not an object', 'a JSON object', JSON.stringify(value) ?? 'nothing');
}

function refuse(where: string, problem: string, expected: string, got: string): never {
  throw new StillhouseError({ code: 'SWEEP_INVALID', where, problem, expected, got });
}
