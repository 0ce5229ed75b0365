import type { KdRecord } from '@stillhouse/evaluation';
import { estimateRepeated, type IntervalEstimate, type RowSum } from '@stillhouse/statistics';

/** A temperature of the loss with the held-out rows of its students, one a seed. */
export interface TriedTemperature {
  readonly temperature: number;
  readonly students: readonly (readonly KdRecord[])[];
}

export interface TemperatureFigures {
  readonly temperature: number;
  readonly seeds: number;
  /** To the teacher at T = 1, whatever the student was trained at: in nats, as all KL and CE here. */
  readonly klAt1: IntervalEstimate;
  readonly ce: IntervalEstimate;
  readonly top1Agreement: IntervalEstimate;
  /** klAt1 less that of the best temperature, row by row; null for the best itself. */
  readonly difference: IntervalEstimate | null;
  /** worse: the whole interval of the difference is above 0; alike: the difference is within the noise. */
  readonly verdict: 'best' | 'worse' | 'alike';
}

/** The temperature that was chosen, and by what. */
export interface TemperatureChoice {
  /** The one with the lowest held-out KL at T = 1. */
  readonly recommended: number;
  /** Those that cannot be told from it. */
  readonly alike: readonly number[];
  readonly temperatures: readonly TemperatureFigures[];
}

/**
 * Compares temperatures by what the students have become, each measured at T = 1 on the same rows. Differences are
 * taken row by row, so that what makes a row hard for all of them is no noise.
 * @param tried at least one, all with the same seeds in the same order
 */
export function chooseTemperature(tried: readonly TriedTemperature[]): TemperatureChoice {
  const kl = (record: KdRecord) => record.kl['1']!;
  const estimates = tried.map(({ students }) => ({
    klAt1: estimateRepeated(sumRows(students, kl)),
    ce: estimateRepeated(sumRows(students, ({ ce }) => ce)),
    top1Agreement: estimateRepeated(sumRows(students, (record) => record.top1Agreement)),
  }));
  const means = estimates.map(({ klAt1 }) => klAt1.mean);
  const bestAt = means.indexOf(Math.min(...means));
  const best = sumRows(tried[bestAt]!.students, kl);
  const temperatures = tried.map(({ temperature, students }, at): TemperatureFigures => {
    const seeds = students.length;
    if (at === bestAt) return { temperature, seeds, ...estimates[at]!, difference: null, verdict: 'best' };
    const difference = estimateRepeated(
      sumRows(students, kl).map((rows, seed) =>
        rows.map(({ sum, tokens }, row) => ({ sum: sum - best[seed]![row]!.sum, tokens })),
      ),
    );
    const isWorse = difference.interval !== null && difference.interval.low > 0;
    return { temperature, seeds, ...estimates[at]!, difference, verdict: isWorse ? 'worse' : 'alike' };
  });
  return {
    recommended: tried[bestAt]!.temperature,
    alike: temperatures.filter(({ verdict }) => verdict === 'alike').map(({ temperature }) => temperature),
    temperatures,
  };
}

const sumRows = (
  students: readonly (readonly KdRecord[])[],
  of: (record: KdRecord) => number,
): readonly (readonly RowSum[])[] =>
  students.map((records) =>
    records.map((record) => ({ sum: of(record) * record.targetTokens, tokens: record.targetTokens })),
  );
