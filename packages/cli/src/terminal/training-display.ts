import { lossTerms, type WatchedEvents } from '@stillhouse/experiments';
import { printBytes, printCount, printShare, printSignificant } from '@stillhouse/report';
import type { CacheUse, HeldOutMetrics, StepMetrics, TrainingStart } from '@stillhouse/student-trainer';
import type { CommandContext } from '../command-line/command.ts';
import type { Progress } from './progress.ts';

/** Shows a training run on the terminal: to be told of everything that happens. */
export function openTrainingDisplay({ note, openProgress }: CommandContext): Required<WatchedEvents> {
  let startedAt = performance.now();
  let progress: Progress | undefined;
  let heldOut: HeldOutMetrics | undefined;
  let tokens = 0;
  return {
    onPlan: (start) => {
      startedAt = performance.now();
      for (const line of describeStart(start)) note(`train: ${line}`);
    },
    onHeldOut: (metrics) => {
      heldOut = metrics;
    },
    onStep: (metrics, steps) => {
      // A resumed run begins in the middle.
      progress ??= openProgress({ label: 'train', unit: 'steps', total: steps, done: metrics.step - 1, startedAt });
      tokens += metrics.tokens;
      progress.update({ done: metrics.step, pace: { tokens }, note: describeStep(metrics, heldOut) });
    },
    onEnd: () => progress?.stop(),
    onPageFailure: ({ message }) => note(`train: the page of the run was not written: ${message}`),
  };
}

/** What is about to be done, in lines. */
function describeStart(start: TrainingStart): readonly string[] {
  const rows = `${printCount(start.rows)} rows (${printCount(start.tokensPerEpoch)} tokens)`;
  const what = start.stages === undefined ? `over ${rows}, labels ${start.labels}` : `in ${start.stages.length} stages`;
  const stages = (start.stages ?? []).map(
    ({ name, steps, rows: ofStage, labels }, i) =>
      `stage ${i + 1}, ${name}: ${printCount(steps)} steps over ${printCount(ofStage)} rows, labels ${labels}`,
  );
  return [
    `${printCount(start.steps)} steps ${what}, on ${start.device}`,
    ...(start.caches.length > 1 ? start.caches.map(describeCache) : []),
    ...stages,
    ...(start.stepsDone > 0 ? [`going on after step ${printCount(start.stepsDone)}`] : []),
  ];
}

/** One of several caches: what there is of it and how much of the training it makes up. */
const describeCache = ({ location, digest, rows, tokens, share }: CacheUse) =>
  `${location} (${digest.slice(0, 12)}), ${printCount(rows)} rows, ${printCount(tokens)} tokens: ` +
  `${printShare(share)} of the tokens trained on`;

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
