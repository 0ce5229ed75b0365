import { openHeldOut } from '@stillhouse/evaluation';
import {
  type HeldOutEvaluator,
  type HeldOutMetrics,
  resolveHeldOut,
  type StepMetrics,
  TRAINING_SETTINGS,
  type TrainingSettings,
  trainStudent,
} from '@stillhouse/student-trainer';
import { defineCommand } from '../command.ts';
import { EXIT_SUCCESS, exitCodeOfSignal } from '../failure.ts';
import type { Progress } from '../progress.ts';
import { printBytes, printCount, printPairs, printSignificant } from '../quantities.ts';
import { lossTerms, openRunPage, printShare, RUN_PAGE_FILE, type RunPage } from '../run-page.ts';

/** Rows of a batch of the evaluation while training; it has no flag of its own, as it changes no figure. */
const EVALUATION_BATCH_SIZE = 8;

export const train = defineCommand({
  settings: TRAINING_SETTINGS,
  run: async (settings, context) => {
    let startedAt = performance.now();
    let progress: Progress | undefined;
    let page: RunPage | undefined;
    let heldOut: HeldOutMetrics | undefined;
    let tokens = 0;
    let stoppedBy: NodeJS.Signals | undefined;
    const stop = new AbortController();
    const evaluator = await openEvaluator(settings);
    try {
      const result = await trainStudent(settings, {
        ...(evaluator === undefined ? {} : { evaluate: evaluator.evaluate }),
        stopSignal: stop.signal,
        onPlan: (plan) => {
          startedAt = performance.now();
          const rows = `${printCount(plan.rows)} rows (${printCount(plan.tokensPerEpoch)} tokens)`;
          context.note(`train: ${printCount(plan.steps)} steps over ${rows}, labels ${plan.labels}, on ${plan.device}`);
          if (plan.stepsDone > 0) context.note(`train: going on after step ${printCount(plan.stepsDone)}`);
          page = openRunPage(settings.out!, plan, context.note);
          // Before there is nothing to save.
          context.onInterrupt((signal) => {
            stoppedBy = signal;
            stop.abort();
            context.note(`train: ${signal}, stopping after this step and saving; once more to end at once`);
          });
        },
        onHeldOut: (metrics) => {
          heldOut = metrics;
          page?.update();
        },
        onStep: (metrics, steps) => {
          // A resumed run begins in the middle.
          progress ??= context.openProgress({
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
      });
      progress?.stop();
      await page?.finish(result.isFinished ? 'finished' : 'stopped');
      const { out, isFinished, steps, last, lastHeldOut, tokensPerSecond, peakRssBytes, cacheDigest } = result;
      // The trainer writes the recipe itself, before the first step.
      return {
        result,
        exitCode: isFinished || stoppedBy === undefined ? EXIT_SUCCESS : exitCodeOfSignal(stoppedBy),
        summary: printPairs([
          isFinished ? ['student', out] : ['stopped', `${out}, go on with --resume`],
          ['steps', printCount(steps)],
          ['loss', last && printSignificant(last.loss)],
          ['kl', last && printSignificant(last.kl)],
          ['ce', last && printSignificant(last.ce)],
          ['hidden', last && settings.hiddenWeight > 0 ? printSignificant(last.hidden) : undefined],
          ['held-out KL@1', lastHeldOut && printSignificant(lastHeldOut.kl)],
          ['held-out top-1', lastHeldOut && printShare(lastHeldOut.top1Agreement)],
          ['speed', `${printCount(tokensPerSecond)} tokens/s`],
          ['peak memory', printBytes(peakRssBytes)],
          ['page', last && `${out}/${RUN_PAGE_FILE}`],
          ['cache digest', cacheDigest],
        ]),
      };
    } finally {
      await evaluator?.close();
    }
  },
});

/** Loss and its terms, the newest held-out figures, and the memory that the process holds now. */
function describeStep(metrics: StepMetrics, heldOut: HeldOutMetrics | undefined): string {
  const terms = lossTerms(metrics).map(([name, value]) => `${name} ${printSignificant(value, 3)}`);
  return [
    `loss ${printSignificant(metrics.loss)}${terms.length < 2 ? '' : ` (${terms.join(', ')})`}`,
    ...(heldOut === undefined
      ? []
      : [`held-out KL@1 ${printSignificant(heldOut.kl, 3)}, top-1 ${printShare(heldOut.top1Agreement)}`]),
    printBytes(process.memoryUsage.rss()),
  ].join(', ');
}

async function openEvaluator(
  settings: TrainingSettings,
): Promise<{ readonly evaluate: HeldOutEvaluator; close(): Promise<void> } | undefined> {
  const { student, chunkPositions } = settings;
  const plan = resolveHeldOut(settings);
  // The trainer says that a student is missing.
  if (plan === undefined || student === undefined) return undefined;
  const rows = await openHeldOut({
    ...plan,
    model: student,
    temperatures: [1],
    batchSize: EVALUATION_BATCH_SIZE,
    chunkPositions,
  });
  return {
    evaluate: async (engine, model) => {
      const { rows: count, targetTokens, kl, ce, top1Agreement } = await rows.evaluate(engine, model);
      return { rows: count, targetTokens, kl: kl['1']!, ce, top1Agreement };
    },
    close: rows.close,
  };
}
