import { TRAINING_SETTINGS, trainStudent } from '@stillhouse/student-trainer';
import { defineCommand } from '../command.ts';
import type { Progress } from '../progress.ts';
import { printBytes, printCount, printPairs, printSignificant } from '../quantities.ts';

export const train = defineCommand({
  settings: TRAINING_SETTINGS,
  run: async (settings, context) => {
    let startedAt = performance.now();
    let progress: Progress | undefined;
    let tokens = 0;
    const result = await trainStudent(settings, {
      onPlan: (plan) => {
        startedAt = performance.now();
        const rows = `${printCount(plan.rows)} rows (${printCount(plan.tokensPerEpoch)} tokens)`;
        context.note(`train: ${printCount(plan.steps)} steps over ${rows}, labels ${plan.labels}, on ${plan.device}`);
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
        progress.update({ done: metrics.step, pace: { tokens }, note: `loss ${printSignificant(metrics.loss)}` });
      },
    });
    progress?.stop();
    const { out, steps, last, tokensPerSecond, peakRssBytes, cacheDigest } = result;
    // The trainer writes the recipe itself, before the first step.
    return {
      result,
      summary: printPairs([
        ['student', out],
        ['steps', printCount(steps)],
        ['loss', last && printSignificant(last.loss)],
        ['kl', last && printSignificant(last.kl)],
        ['ce', last && printSignificant(last.ce)],
        ['hidden', last && settings.hiddenWeight > 0 ? printSignificant(last.hidden) : undefined],
        ['speed', `${printCount(tokensPerSecond)} tokens/s`],
        ['peak memory', printBytes(peakRssBytes)],
        ['cache digest', cacheDigest],
      ]),
    };
  },
});
