import {
  type LineSeries,
  printCount,
  printDuration,
  printShare,
  printSignificant,
  type Report,
  type ReportBlock,
} from '@stillhouse/report';
import type { HeldOutMetrics, StepMetrics, TrainingStart } from '@stillhouse/student-trainer';
import { lossTerms } from './loss-terms.ts';

/** What is known of a run. */
export interface RunContent {
  /** The run's folder. */
  readonly out: string;
  readonly plan: TrainingStart;
  /** At least one. */
  readonly steps: readonly StepMetrics[];
  readonly heldOut: readonly HeldOutMetrics[];
  readonly state: 'running' | 'finished' | 'stopped';
}

/** What the page says: headline figures, loss terms, the held-out curves, the norm of the gradient and the rate. */
export function describeRun({ out, plan, steps, heldOut, state }: RunContent): Report {
  const last = steps.at(-1)!;
  const curve = (name: string, of: (line: StepMetrics) => number): LineSeries => ({
    name,
    points: steps.map((line) => [line.step, of(line)] as const),
  });
  const losses = [
    curve('loss', ({ loss }) => loss),
    ...lossTerms(last).map(([term]) => curve(term, (line) => line[term] ?? 0)),
  ];
  const measured = heldOut.at(-1);
  return {
    title: `Training run ${out}`,
    subtitle:
      `${state} at step ${printCount(last.step)} of ${printCount(plan.steps)}; ${nameStage(plan, last)}; ` +
      `${plan.device}; ${nameCaches(plan)}`,
    sections: [
      {
        blocks: [
          {
            kind: 'figures',
            figures: [
              { label: 'loss', value: printSignificant(last.loss), note: 'nats, of the last step' },
              ...(measured === undefined
                ? []
                : [
                    {
                      label: 'held-out KL@1',
                      value: printSignificant(measured.kl),
                      note: `nats, after step ${printCount(measured.step)}`,
                    },
                    {
                      label: 'top-1 agreement',
                      value: printShare(measured.top1Agreement),
                      note: `${printCount(measured.targetTokens)} held-out tokens`,
                    },
                  ]),
              {
                label: 'speed',
                value: printCount((last.tokensSeen / last.elapsedMs) * 1000),
                note: 'tokens a second, of the whole run',
              },
              { label: 'time in steps', value: printDuration(last.elapsedMs) },
            ],
          },
        ],
      },
      { heading: 'Loss', blocks: [lines(losses, 'nats')] },
      ...(heldOut.length === 0
        ? []
        : [
            {
              heading: 'Held-out rows',
              blocks: [
                lines([points('KL@1', heldOut, 'kl'), points('CE', heldOut, 'ce')], 'nats'),
                lines([points('top-1 agreement', heldOut, 'top1Agreement')], 'share of tokens'),
              ],
            },
          ]),
      {
        heading: 'Optimiser',
        blocks: [
          lines([curve('gradient norm', ({ gradNorm }) => gradNorm)], 'gradient norm'),
          lines([curve('learning rate', ({ lr }) => lr)], 'learning rate'),
        ],
      },
    ],
  };
}

function nameCaches({ caches }: TrainingStart): string {
  if (caches.length === 1) return `cache ${caches[0]!.digest.slice(0, 12)}`;
  const named = caches.map(
    ({ location, digest, share }) => `${location} ${digest.slice(0, 12)} (${printShare(share)})`,
  );
  return `caches ${named.join(', ')}`;
}

/** The labels that are trained on now; with stages which of them it is. */
function nameStage({ labels, stages = [] }: TrainingStart, { stage }: StepMetrics): string {
  const index = stages.findIndex(({ name }) => name === stage);
  if (index === -1) return `labels ${labels}`;
  return `stage ${stage}, ${index + 1} of ${stages.length}; labels ${stages[index]!.labels}`;
}

const points = (name: string, heldOut: readonly HeldOutMetrics[], key: 'kl' | 'ce' | 'top1Agreement'): LineSeries => ({
  name,
  points: heldOut.map((line) => [line.step, line[key]] as const),
});

const lines = (series: readonly LineSeries[], yLabel: string): ReportBlock => ({
  kind: 'lines',
  series,
  xLabel: 'step',
  yLabel,
});
