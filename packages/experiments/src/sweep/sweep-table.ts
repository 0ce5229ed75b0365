import {
  printBytes,
  printCount,
  printDuration,
  printShare,
  printSignificant,
  type TableCell,
} from '@stillhouse/report';
import type { Estimate, RunFigures, SweepFigures } from './sweep-figures.ts';

/** A column of the sweep's table: a number for files, the same in words for readers. */
interface Column {
  readonly title: string;
  /** Name in a CSV file, with its unit. */
  readonly key: string;
  readonly value: (run: RunFigures) => TableCell;
  readonly print: (run: RunFigures) => string | null;
}

type Known<Key extends keyof RunFigures> = NonNullable<RunFigures[Key]>;

/** A column of one figure; what is null stays empty. */
function column<Key extends keyof RunFigures>(
  title: string,
  key: string,
  figure: Key,
  { value, print }: { readonly value: (known: Known<Key>) => TableCell; readonly print: (known: Known<Key>) => string },
): Column {
  const or =
    <Result>(of: (known: Known<Key>) => Result) =>
    (run: RunFigures): Result | null => {
      const found = run[figure];
      return found === null ? null : of(found as Known<Key>);
    };
  return { title, key, value: or(value), print: or(print) };
}

const estimate = (
  title: string,
  key: string,
  figure: 'klAt1' | 'klAtT' | 'ce' | 'top1Agreement',
): readonly Column[] => [
  column(title, key, figure, {
    value: ({ value }) => value,
    print: figure === 'top1Agreement' ? printRate : printEstimate,
  }),
  // In words both stand in one cell.
  {
    ...column('', `${key}_standard_error`, figure, { value: ({ standardError }) => standardError, print: () => '' }),
    print: () => null,
  },
];

const printEstimate = ({ value, standardError }: Estimate): string =>
  standardError === null
    ? printSignificant(value)
    : `${printSignificant(value)} ± ${printSignificant(standardError, 2)}`;

const printRate = ({ value, standardError }: Estimate): string =>
  standardError === null ? printShare(value) : `${(100 * value).toFixed(1)} ± ${(100 * standardError).toFixed(1)} %`;

const COLUMNS: readonly Column[] = [
  { title: 'run', key: 'run', value: ({ name }) => name, print: ({ name, isBest }) => (isBest ? `${name} *` : name) },
  { title: '', key: 'best', value: ({ isBest }) => String(isBest), print: () => null },
  column('state', 'state', 'state', { value: String, print: String }),
  ...estimate('KL at T=1', 'kl_at_1_nats', 'klAt1'),
  column('T', 'temperature', 'temperature', { value: Number, print: String }),
  ...estimate('KL at T', 'kl_at_temperature_nats', 'klAtT'),
  ...estimate('CE', 'ce_nats', 'ce'),
  ...estimate('top-1', 'top_1_agreement', 'top1Agreement'),
  column('accuracy', 'accuracy', 'accuracy', {
    value: ({ value }) => value,
    print: ({ value, low, high }) =>
      `${(100 * value).toFixed(1)} % (${(100 * low).toFixed(1)} to ${(100 * high).toFixed(1)})`,
  }),
  column('parameters', 'parameters', 'parameters', {
    value: Number,
    print: (count) => printCount(Number(count)),
  }),
  column('weights', 'weight_bytes', 'weightBytes', {
    value: Number,
    print: (bytes) => printBytes(Number(bytes)),
  }),
  column('train tokens/s', 'train_tokens_per_second', 'trainTokensPerSecond', {
    value: Number,
    print: (speed) => printCount(Number(speed)),
  }),
  column('decode tokens/s', 'decode_tokens_per_second', 'decodeTokensPerSecond', {
    value: Number,
    print: (speed) => printCount(Number(speed)),
  }),
  column('wall time', 'wall_seconds', 'wallMs', { value: (ms) => ms / 1000, print: (ms) => printDuration(ms) }),
  column('CPU time', 'cpu_seconds', 'cpuMs', { value: (ms) => ms / 1000, print: (ms) => printDuration(ms) }),
  column('price', 'price', 'price', {
    value: Number,
    print: (price) => printSignificant(Number(price), 3),
  }),
  { ...column('', 'cache_digest', 'cacheDigest', { value: String, print: String }), print: () => null },
];

/** Columns that have something to say, those of the settings that differ after the name. */
function chooseColumns({ runs, differing }: SweepFigures, isForReaders: boolean): readonly Column[] {
  const settings = differing
    .filter((key) => !(isForReaders && key === 'temperature'))
    .map((key): Column => {
      const value = (run: RunFigures): TableCell => {
        const found = run.settings[key];
        if (found === null || found === undefined) return null;
        return typeof found === 'number' ? found : Array.isArray(found) ? found.join(' ') : String(found);
      };
      return { title: key, key, value, print: (run) => (value(run) === null ? null : String(value(run))) };
    });
  const [name, ...rest] = COLUMNS;
  const all = [name!, ...settings, ...rest.filter(({ key }) => !differing.includes(key) || isForReaders)];
  return all.filter(({ value, print }) => runs.some((run) => (isForReaders ? print(run) : value(run)) !== null));
}

/** The table in words: headings, then one row a run. */
export function tabulateSweep(figures: SweepFigures): {
  readonly columns: readonly string[];
  readonly rows: readonly (readonly (string | null)[])[];
} {
  const columns = chooseColumns(figures, true);
  return {
    columns: columns.map(({ title }) => title),
    rows: figures.runs.map((run) => columns.map(({ print }) => print(run))),
  };
}

export function printMarkdown(figures: SweepFigures): string {
  const { columns, rows } = tabulateSweep(figures);
  const line = (cells: readonly string[]) => `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |\n`;
  const rule = columns.map((_, at) => (at === 0 ? '---' : '---:'));
  return [columns, rule, ...rows.map((row) => row.map((cell) => cell ?? '–'))].map(line).join('');
}

/** As RFC 4180 has it; numbers in full, with the units in the headings. */
export function printCsv(figures: SweepFigures): string {
  const columns = chooseColumns(figures, false);
  const quote = (cell: TableCell): string => {
    const text = cell === null ? '' : String(cell);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const lines = [columns.map(({ key }) => key), ...figures.runs.map((run) => columns.map(({ value }) => value(run)))];
  return lines.map((cells) => `${cells.map(quote).join(',')}\r\n`).join('');
}
