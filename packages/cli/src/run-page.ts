import { join } from 'node:path';
import {
  type LineSeries,
  printCount,
  printDuration,
  printShare,
  printSignificant,
  type Report,
  type ReportBlock,
  writeReport,
} from '@stillhouse/report';
import {
  HELD_OUT_FILE,
  type HeldOutMetrics,
  METRICS_FILE,
  readStepLog,
  type StepMetrics,
  type TrainingStart,
} from '@stillhouse/student-trainer';

/** The page of a run, beside its metrics. */
export const RUN_PAGE_FILE = 'run.html';

const WRITE_INTERVAL_MS = 20_000;
/** Drawing takes no more than this share of the time: long runs have much to draw. */
const DRAWING_SHARE = 0.02;

export interface RunPage {
  /** Writes the page unless it was written a moment ago; does not wait. */
  update(): void;
  /** Writes it a last time. */
  finish(state: 'finished' | 'stopped'): Promise<void>;
}

/**
 * Keeps a page with the curves of a run, drawn from the files that the run writes.
 * @param note told why the page could not be written; the run goes on without it
 */
export function openRunPage(
  out: string,
  plan: TrainingStart,
  note: (line: string) => void,
  intervalMs = WRITE_INTERVAL_MS,
): RunPage {
  let writing: Promise<void> | undefined;
  let nextAt = 0;
  const write = async (state: 'running' | 'finished' | 'stopped') => {
    const startedAt = performance.now();
    try {
      const [steps, heldOut] = await Promise.all([
        readStepLog<StepMetrics>(out, METRICS_FILE),
        readStepLog<HeldOutMetrics>(out, HELD_OUT_FILE),
      ]);
      if (steps.length === 0) return;
      const report = describeRun(out, plan, steps, heldOut, state);
      await writeReport(
        { ...report, ...(state === 'running' ? { refreshSeconds: 30 } : {}) },
        join(out, RUN_PAGE_FILE),
      );
    } catch (error) {
      note(`train: the page of the run was not written: ${(error as Error).message}`);
    } finally {
      const now = performance.now();
      nextAt = now + Math.max(intervalMs, (now - startedAt) / DRAWING_SHARE);
    }
  };
  return {
    update() {
      if (writing !== undefined || performance.now() < nextAt) return;
      writing = write('running').finally(() => {
        writing = undefined;
      });
    },
    async finish(state) {
      await writing;
      await write(state);
    },
  };
}

/** What the page says: headline figures, loss terms, the held-out curves, the norm of the gradient and the rate. */
export function describeRun(
  out: string,
  plan: TrainingStart,
  steps: readonly StepMetrics[],
  heldOut: readonly HeldOutMetrics[],
  state: 'running' | 'finished' | 'stopped',
): Report {
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
    subtitle: `${state} at step ${printCount(last.step)} of ${printCount(plan.steps)}; ${nameStage(plan, last)}; ${plan.device}; ${nameCaches(plan)}`,
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

/** Terms of the loss that take part, by their names in metrics.jsonl. */
export function lossTerms(metrics: StepMetrics): readonly (readonly [LossTerm, number])[] {
  return LOSS_TERMS.flatMap((term) => {
    const value = metrics[term] ?? 0;
    return value === 0 ? [] : [[term, value] as const];
  });
}

const LOSS_TERMS = ['kl', 'ce', 'hidden', 'attention'] as const;
type LossTerm = (typeof LOSS_TERMS)[number];
