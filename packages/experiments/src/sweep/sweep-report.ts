import { join } from 'node:path';
import { writeFileAtomically } from '@stillhouse/durable-files';
import {
  type ChartPoint,
  printCount,
  type Report,
  type ReportBlock,
  type ReportSection,
  writeReport,
} from '@stillhouse/report';
import { type RunFigures, readSweepFigures, type SweepFigures } from './sweep-figures.ts';
import { inTurn } from './sweep-folder.ts';
import { printCsv, printMarkdown, tabulateSweep } from './sweep-table.ts';

/** The sweep's report in its folder: a page, and the table for programs and for documents. */
export const REPORT_FILES = {
  page: 'report.html',
  json: 'report.json',
  csv: 'report.csv',
  markdown: 'report.md',
} as const;

const KL_LABEL = 'held-out KL at T = 1, nats';
/** Half the width of a 95 % interval, in standard errors. */
const INTERVAL = 1.96;

/**
 * Writes the report of a sweep as far as it is.
 * @throws StillhouseError SWEEP_ABSENT, SWEEP_FILE_DAMAGED, DISK_FULL, NOT_WRITABLE
 */
export async function writeSweepReport(out: string): Promise<SweepFigures> {
  // A folder without a sweep is told so before anything is written there.
  await readSweepFigures(out);
  return inTurn(out, async () => {
    const figures = await readSweepFigures(out);
    await writeFileAtomically(join(out, REPORT_FILES.json), `${JSON.stringify(figures, null, 2)}\n`);
    await writeFileAtomically(join(out, REPORT_FILES.csv), printCsv(figures));
    await writeFileAtomically(join(out, REPORT_FILES.markdown), printMarkdown(figures));
    await writeReport(describeSweep(figures), join(out, REPORT_FILES.page));
    return figures;
  });
}

/** What the page says: a table and charts for each cache, and what failed. */
export function describeSweep(figures: SweepFigures): Report {
  const { out, runs } = figures;
  const count = (state: RunFigures['state']) => runs.filter((run) => run.state === state).length;
  const open = runs.length - count('finished') - count('failed');
  const states = [
    `${printCount(count('finished'))} of ${printCount(runs.length)} runs finished`,
    ...(count('failed') === 0 ? [] : [`${printCount(count('failed'))} failed`]),
    ...(open === 0 ? [] : [`${printCount(open)} to go`]),
  ];
  const digests = [...new Set(runs.map(({ cacheDigest }) => cacheDigest))];
  const failed = runs.filter(({ failure }) => failure !== null);
  return {
    title: `Sweep ${out}`,
    subtitle: states.join(', '),
    sections: [
      ...digests.map((digest) => describeCache(figures, digest)),
      ...(failed.length === 0
        ? []
        : [
            {
              heading: 'Failed',
              blocks: failed.map(
                ({ name, failure }): ReportBlock => ({
                  kind: 'paragraph',
                  text: `${name}: ${failure!.message} [${failure!.code}]`,
                }),
              ),
            },
          ]),
    ],
  };
}

function describeCache(figures: SweepFigures, digest: string): ReportSection {
  const runs = figures.runs.filter(({ cacheDigest }) => cacheDigest === digest);
  const own = { ...figures, runs };
  const table = tabulateSweep(own);
  const measured = runs.filter(({ klAt1 }) => klAt1 !== null);
  return {
    heading: `Cache ${digest.slice(0, 12)}`,
    blocks: [
      { kind: 'table', ...table },
      {
        kind: 'paragraph',
        text:
          '* lowest KL to the teacher at T = 1 on held-out rows. KL and CE in nats a token; ± one standard error ' +
          'over rows; times of training.',
      },
      ...(measured.length === 0 ? [] : chartRuns(measured)),
      ...figures.differing.flatMap((key) => chartSetting(key, measured, figures.differing)),
    ],
  };
}

/** With more runs than this a bar for each is no picture. */
const MOST_BARS = 40;

/** KL against size, or a bar for each run where all students are of one size. */
function chartRuns(runs: readonly RunFigures[]): readonly ReportBlock[] {
  const drawn = runs.map((run) => pointOf(run, run.parameters!, 'runs'));
  if (new Set(drawn.map(({ x }) => x)).size > 1) return [points('Fidelity by size', 'parameters', drawn, true)];
  if (runs.length > MOST_BARS) return [];
  const bars = drawn.map(({ name, y, x: _, group: __, ...interval }) => ({ name: name!, value: y, ...interval }));
  return [{ kind: 'bars', title: 'Fidelity', bars, valueLabel: KL_LABEL }];
}

/** KL by a setting that takes at least three numbers, with a line for each combination of the other settings. */
function chartSetting(key: string, runs: readonly RunFigures[], differing: readonly string[]): readonly ReportBlock[] {
  const values = new Set(runs.map(({ settings }) => settings[key]));
  if (values.size < 3 || [...values].some((value) => typeof value !== 'number')) return [];
  const others = differing.filter((other) => other !== key);
  const groupOf = ({ settings }: RunFigures) =>
    others.length === 0 ? 'runs' : others.map((other) => `${other} ${String(settings[other])}`).join(', ');
  const chosen = runs.map((run) => ({ ...pointOf(run, Number(run.settings[key]), groupOf(run)), name: undefined }));
  return [
    points(
      `Fidelity by ${key}`,
      key,
      chosen.map(({ name: _, ...point }) => point),
      false,
    ),
  ];
}

const pointOf = ({ name, klAt1 }: RunFigures, x: number, group: string): ChartPoint => {
  const { value, standardError } = klAt1!;
  const around =
    standardError === null ? {} : { low: value - INTERVAL * standardError, high: value + INTERVAL * standardError };
  return { name, group, x, y: value, ...around };
};

const points = (title: string, xLabel: string, chosen: readonly ChartPoint[], logX: boolean): ReportBlock => ({
  kind: 'points',
  title,
  points: chosen,
  xLabel,
  yLabel: KL_LABEL,
  ...(logX ? { logX } : { isJoined: true }),
});
