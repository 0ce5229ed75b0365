import { printShare, printSignificant, type Report, type ReportBlock } from '@stillhouse/report';
import type { IntervalEstimate } from '@stillhouse/statistics';
import type { TemperatureChoice, TemperatureFigures } from './choice.ts';

/** What tuning writes beside the files of its sweep. */
export const TEMPERATURE_FILES = { page: 'temperature.html', json: 'temperature.json' } as const;

const HEADINGS = ['T', 'KL at T=1', '95 % interval', 'more than the best', '95 % interval', '', 'CE', 'top-1'];
const VERDICTS = { best: 'best', worse: 'worse', alike: 'within the noise' } as const;

/** Headings, then one row a temperature. */
export function tabulateTemperatures({ temperatures }: TemperatureChoice): readonly (readonly string[])[] {
  return [
    HEADINGS,
    ...temperatures.map(({ temperature, klAt1, difference, verdict, ce, top1Agreement }) => [
      String(temperature),
      printSignificant(klAt1.mean),
      printInterval(klAt1),
      difference === null ? '–' : printSignificant(difference.mean, 3),
      difference === null ? '–' : printInterval(difference),
      VERDICTS[verdict],
      printSignificant(ce.mean),
      printShare(top1Agreement.mean),
    ]),
  ];
}

const printInterval = ({ interval }: IntervalEstimate): string =>
  interval === null ? '–' : `${printSignificant(interval.low, 3)} to ${printSignificant(interval.high, 3)}`;

/** The choice in a sentence or two. */
export function explainChoice({ recommended, alike, temperatures }: TemperatureChoice): string {
  const { seeds } = temperatures[0]!;
  const others =
    alike.length === 0
      ? 'every other temperature is worse by more than the noise'
      : `T = ${alike.join(', ')} cannot be told from it: the differences are within the noise`;
  const caution =
    seeds === 1 ? ' One seed: what chance did in training is not in the intervals; --seeds 1,2,3 tells.' : '';
  return `T = ${recommended} has the lowest held-out KL; ${others}.${caution}`;
}

/** What the page says: the choice, the table, and the curves. */
export function describeTemperatures(out: string, choice: TemperatureChoice): Report {
  const [columns, ...rows] = tabulateTemperatures(choice);
  return {
    title: `Temperature for ${out}`,
    subtitle: `T = ${choice.recommended} recommended`,
    sections: [
      {
        blocks: [
          { kind: 'paragraph', text: explainChoice(choice) },
          curve(choice, 'KL to the teacher', 'held-out KL at T = 1, nats', ({ klAt1 }) => klAt1),
          { kind: 'table', columns: columns!, rows },
          {
            kind: 'paragraph',
            text:
              'All students are measured at T = 1 on the same held-out rows, whatever they were trained at. ' +
              'Intervals are 95 % over rows and, with several seeds, over seeds; differences are taken row by ' +
              'row.',
          },
          curve(choice, 'Cross-entropy', 'held-out CE, nats', ({ ce }) => ce),
          curve(choice, 'Top-1 agreement', 'share of held-out tokens', ({ top1Agreement }) => top1Agreement),
        ],
      },
    ],
  };
}

const curve = (
  { temperatures }: TemperatureChoice,
  title: string,
  yLabel: string,
  of: (figures: TemperatureFigures) => IntervalEstimate,
): ReportBlock => ({
  kind: 'points',
  title,
  xLabel: 'temperature of the loss',
  yLabel,
  isJoined: true,
  points: temperatures.map((one) => {
    const { mean, interval } = of(one);
    return { group: title, x: one.temperature, y: mean, ...(interval ?? {}) };
  }),
});
