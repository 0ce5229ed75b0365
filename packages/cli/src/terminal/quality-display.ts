import { type CacheQuality, measureCacheQuality, type QualitySettings } from '@stillhouse/evaluation';
import { printBytes, printCount, printSignificant } from '@stillhouse/report';
import type { CommandContext } from '../command-line/command.ts';
import type { Progress } from './progress.ts';
import { printPairs, printTable } from './text-table.ts';

const STAGES = {
  teacher: "the teacher's true distribution",
  student: 'the student at the same positions',
  labels: 'labels against the truth',
};

/** Measures a cache while the terminal says how far it is. */
export async function showQuality(settings: QualitySettings, context: CommandContext): Promise<CacheQuality> {
  let progress: Progress | undefined;
  let total = 0;
  const result = await measureCacheQuality(settings, {
    onPlan: ({ rows, positions, modes, device }) => {
      total = positions;
      context.note(
        `cache quality: ${printCount(positions)} positions of ${printCount(rows)} rows, ${modes.join(', ')}, ` +
          `on ${device}`,
      );
    },
    onStage: (stage) => context.note(`cache quality: ${STAGES[stage]}`),
    onProgress: (done) => {
      progress ??= context.openProgress({ label: 'cache quality', unit: 'positions', total });
      progress.update({ done, pace: { tokens: done } });
    },
  });
  progress?.stop();
  return result;
}

/** For each temperature what every mode of labels costs and loses. */
export function printQuality(result: CacheQuality): string {
  const { modes, temperatures, fixedBytes, out } = result;
  const pairs = printPairs([
    ['cache', result.cache],
    ['digest', result.cacheDigest],
    ['student', result.student],
    ['truth from', result.reference],
    ['measured', `${printCount(result.positions)} positions of ${printCount(result.rows)} rows`],
    ['teacher CE', printSignificant(result.teacherCe)],
    ['once for all', fixedBytes === 0 ? undefined : `${printBytes(fixedBytes)}, output matrix and scales`],
    ['written to', out ?? undefined],
  ]);
  const orNone = (value: number | null | undefined, digits?: number) =>
    value === null || value === undefined ? '-' : printSignificant(value, digits);
  const tables = temperatures.map((temperature) => {
    const shown = modes.flatMap((mode) => {
      const figures = mode.at[String(temperature)];
      return figures === undefined ? [] : [{ mode, figures }];
    });
    const exact = shown[0]?.figures.exactLoss;
    return [
      `T = ${temperature}, exact loss ${orNone(exact)}`,
      printTable([
        ['labels', 'B/token', 'mass', 'KL(teacher‖labels)', 'grad', 'cos', 'pooled cos', 'loss', 'calibration', 'CE'],
        ...shown.map(({ mode, figures }) => [
          mode.name,
          orNone(mode.bytesPerToken),
          figures.retainedMass.toFixed(5),
          orNone(figures.divergence, 3),
          orNone(figures.gradientError, 3),
          figures.meanGradientCosine.toFixed(5),
          figures.gradientCosine.toFixed(5),
          orNone(figures.loss),
          orNone(figures.calibrationError, 3),
          orNone(figures.ce),
        ]),
      ]),
    ].join('\n');
  });
  return [pairs, ...tables].join('\n\n');
}
