import { resolveStages, TRAINING_SETTINGS, trainStudent } from '@stillhouse/student-trainer';
import { defineCommand } from '../command.ts';
import { EXIT_SUCCESS, exitCodeOfSignal } from '../failure.ts';
import { openEvaluator } from '../held-out-evaluator.ts';
import { printBytes, printCount, printPairs, printSignificant } from '../quantities.ts';
import { printShare, RUN_PAGE_FILE } from '../run-page.ts';
import { openTrainingDisplay } from '../training-display.ts';

export const train = defineCommand({
  settings: TRAINING_SETTINGS,
  resolveStages,
  run: async (settings, context) => {
    let stoppedBy: NodeJS.Signals | undefined;
    const stop = new AbortController();
    const display = openTrainingDisplay(settings.out!, context);
    // Stages share what is evaluated; rows that are trained on are theirs.
    const evaluator = await openEvaluator(settings.stages?.[0]?.settings ?? settings);
    try {
      const result = await trainStudent(settings, {
        ...display.events,
        ...(evaluator === undefined ? {} : { evaluate: evaluator.evaluate }),
        stopSignal: stop.signal,
        onPlan: (plan) => {
          display.events.onPlan(plan);
          // Before there is nothing to save.
          context.onInterrupt((signal) => {
            stoppedBy = signal;
            stop.abort();
            context.note(`train: ${signal}, stopping after this step and saving; once more to end at once`);
          });
        },
      });
      await display.finish(result.isFinished ? 'finished' : 'stopped');
      const { out, isFinished, steps, last, lastHeldOut, tokensPerSecond, peakRssBytes, caches } = result;
      // The trainer writes the recipe itself, before the first step.
      return {
        result,
        exitCode: isFinished || stoppedBy === undefined ? EXIT_SUCCESS : exitCodeOfSignal(stoppedBy),
        summary: printPairs([
          isFinished ? ['student', out] : ['stopped', `${out}, go on with --resume`],
          ['steps', printCount(steps)],
          ['stage', last?.stage],
          ['loss', last && printSignificant(last.loss)],
          ['kl', last && printSignificant(last.kl)],
          ['ce', last && printSignificant(last.ce)],
          ['hidden', last === undefined || last.hidden === 0 ? undefined : printSignificant(last.hidden)],
          ['attention', last?.attention === undefined ? undefined : printSignificant(last.attention)],
          ['held-out KL@1', lastHeldOut && printSignificant(lastHeldOut.kl)],
          ['held-out top-1', lastHeldOut && printShare(lastHeldOut.top1Agreement)],
          ['speed', `${printCount(tokensPerSecond)} tokens/s`],
          ['peak memory', printBytes(peakRssBytes)],
          ['page', last && `${out}/${RUN_PAGE_FILE}`],
          ...caches.map(({ location, digest, epochs }): [string, string] =>
            caches.length === 1
              ? ['cache digest', digest]
              : [location, `digest ${digest}, ${printSignificant(epochs, 3)} epochs`],
          ),
        ]),
      };
    } finally {
      await evaluator?.close();
    }
  },
});
