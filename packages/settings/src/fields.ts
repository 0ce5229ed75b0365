import * as v from 'valibot';

export type FieldKind = 'number' | 'integer' | 'text' | 'choice' | 'boolean' | 'list';

/** One setting. `Value` is the type it has once resolved; without a default it may be absent. */
export interface Field<Value> {
  readonly kind: FieldKind;
  readonly help: string;
  readonly default: Value;
  readonly schema: v.GenericSchema<unknown, unknown>;
  /** For choices: the words allowed. */
  readonly choices?: readonly string[];
  /** What stands between the values of a flag that is given more than once; left out: the last one holds. */
  readonly joins?: string;
}

export type SettingsTable = Readonly<Record<string, Field<unknown>>>;
export type SettingsOf<Table extends SettingsTable> = {
  readonly [Key in keyof Table]: Table[Key] extends Field<infer Value> ? Value : never;
};

interface Bounds {
  readonly min?: number;
  readonly max?: number;
  /** The least value is not allowed itself. */
  readonly above?: number;
}

const bounded = ({ min, max, above }: Bounds) =>
  v.check<number, string>(
    (value) => value >= (min ?? -Infinity) && value <= (max ?? Infinity) && value > (above ?? -Infinity),
    [
      min === undefined ? [] : `at least ${min}`,
      max === undefined ? [] : `at most ${max}`,
      above === undefined ? [] : `above ${above}`,
    ]
      .flat()
      .join(' and '),
  );

export function number<Default extends number | undefined>(
  help: string,
  fallback: Default,
  bounds: Bounds = {},
): Field<number | Default> {
  return {
    kind: 'number',
    help,
    default: fallback,
    schema: v.pipe(v.number('a number'), v.finite('a finite number'), bounded(bounds)),
  };
}

export function integer<Default extends number | undefined>(
  help: string,
  fallback: Default,
  bounds: Bounds = {},
): Field<number | Default> {
  return {
    kind: 'integer',
    help,
    default: fallback,
    schema: v.pipe(v.number('a whole number'), v.integer('a whole number'), bounded(bounds)),
  };
}

export function text<Default extends string | undefined>(
  help: string,
  fallback: Default,
  { joins }: Pick<Field<string>, 'joins'> = {},
): Field<string | Default> {
  const schema = v.pipe(v.string('text'), v.minLength(1, 'text'));
  return { kind: 'text', help, default: fallback, schema, ...(joins === undefined ? {} : { joins }) };
}

export function boolean(help: string, fallback = false): Field<boolean> {
  return { kind: 'boolean', help, default: fallback, schema: v.boolean('true or false') };
}

export function choice<const Word extends string, Default extends Word | undefined>(
  help: string,
  choices: readonly Word[],
  fallback: Default,
): Field<Word | Default> {
  return {
    kind: 'choice',
    help,
    default: fallback,
    choices,
    schema: v.picklist(choices, `one of ${choices.join(', ')}`),
  };
}

/** A list of words or numbers; on the command line separated by commas. */
export function list<Item extends string | number, Default extends readonly Item[] | undefined>(
  help: string,
  item: (value: unknown) => value is Item,
  expected: string,
  fallback: Default,
): Field<readonly Item[] | Default> {
  return {
    kind: 'list',
    help,
    default: fallback,
    schema: v.pipe(v.array(v.custom<Item>(item, expected), expected), v.minLength(1, expected)),
  };
}
