import { printBytes, printCount, printShare, printSignificant } from '@stillhouse/report';
import type { CacheUse, HeldOutMetrics, StepMetrics, TrainingEvents } from '@stillhouse/student-trainer';
import type { CommandContext } from './command.ts';
import type { Progress } from './progress.ts';
import { lossTerms, openRunPage, type RunPage } from './run-page.ts';

/** What the terminal and the run's page show of a training run. */
export interface TrainingDisplay {
  /** To be told of everything that happens. */
  readonly events: Required<Pick<TrainingEvents, 'onPlan' | 'onStep' | 'onHeldOut'>>;
  /** Leaves the last state on the screen and writes the page a last time. */
  finish(state: 'finished' | 'stopped'): Promise<void>;
}

/** @param out the run's folder */
export function openTrainingDisplay(out: string, { note, openProgress }: CommandContext): TrainingDisplay {
  let startedAt = performance.now();
  let progress: Progress | undefined;
  let page: RunPage | undefined;
  let heldOut: HeldOutMetrics | undefined;
  let tokens = 0;
  return {
    events: {
      onPlan: (plan) => {
        startedAt = performance.now();
        const rows = `${printCount(plan.rows)} rows (${printCount(plan.tokensPerEpoch)} tokens)`;
        const what =
          plan.stages === undefined ? `over ${rows}, labels ${plan.labels}` : `in ${plan.stages.length} stages`;
        note(`train: ${printCount(plan.steps)} steps ${what}, on ${plan.device}`);
        if (plan.caches.length > 1) for (const one of plan.caches) note(`train: ${describeCache(one)}`);
        for (const [i, { name, steps, rows, labels }] of (plan.stages ?? []).entries()) {
          note(
            `train: stage ${i + 1}, ${name}: ${printCount(steps)} steps over ${printCount(rows)} rows, labels ${labels}`,
          );
        }
        if (plan.stepsDone > 0) note(`train: going on after step ${printCount(plan.stepsDone)}`);
        page = openRunPage(out, plan, note);
      },
      onHeldOut: (metrics) => {
        heldOut = metrics;
        page?.update();
      },
      onStep: (metrics, steps) => {
        // A resumed run begins in the middle.
        progress ??= openProgress({
          label: 'train',
          unit: 'steps',
          total: steps,
          done: metrics.step - 1,
          startedAt,
        });
        tokens += metrics.tokens;
        progress.update({ done: metrics.step, pace: { tokens }, note: describeStep(metrics, heldOut) });
        page?.update();
      },
    },
    finish: async (state) => {
      progress?.stop();
      await page?.finish(state);
    },
  };
}

/** One of several caches: what there is of it and how much of the training it makes up. */
const describeCache = ({ location, digest, rows, tokens, share }: CacheUse) =>
  `${location} (${digest.slice(0, 12)}), ${printCount(rows)} rows, ${printCount(tokens)} tokens: ${printShare(share)} of the tokens trained on`;

/** Loss and its terms, the newest held-out figures, and the memory that the process holds now. */
function describeStep(metrics: StepMetrics, heldOut: HeldOutMetrics | undefined): string {
  const terms = lossTerms(metrics).map(([name, value]) => `${name} ${printSignificant(value, 3)}`);
  return [
    ...(metrics.stage === undefined ? [] : [`stage ${metrics.stage}`]),
    `loss ${printSignificant(metrics.loss)}${terms.length < 2 ? '' : ` (${terms.join(', ')})`}`,
    ...(heldOut === undefined
      ? []
      : [`held-out KL@1 ${printSignificant(heldOut.kl, 3)}, top-1 ${printShare(heldOut.top1Agreement)}`]),
    printBytes(process.memoryUsage.rss()),
  ].join(', ');
}
