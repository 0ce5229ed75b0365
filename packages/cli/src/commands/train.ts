import { StillhouseError } from '@stillhouse/errors';
import { openEvaluator, RUN_PAGE_FILE, trainWatched } from '@stillhouse/experiments';
import { printBytes, printCount, printShare, printSignificant } from '@stillhouse/report';
import { boolean, integer } from '@stillhouse/settings';
import {
  planTraining,
  resolveStages,
  type StagedSettings,
  TRAINING_SETTINGS,
  type TrainingResult,
} from '@stillhouse/student-trainer';
import { defineCommand, type Outcome } from '../command-line/command.ts';
import { openInterruption } from '../command-line/interruption.ts';
import { EXIT_FAILURE, EXIT_SUCCESS } from '../failure.ts';
import { printPairs } from '../terminal/text-table.ts';
import { openTrainingDisplay } from '../terminal/training-display.ts';

const SETTINGS = {
  ...TRAINING_SETTINGS,
  dryRun: boolean('say what would be done and how much memory it takes, and do nothing'),
  memory: integer("with --dry-run: bytes that the run may take; left out: this machine's", undefined, { min: 1 }),
} as const;

/** What makes a run, without what asks for a plan of it. */
const ofTheRun = ({ dryRun: _, memory: __, ...settings }: Readonly<Record<string, unknown>>) => settings;

export const train = defineCommand({
  settings: SETTINGS,
  resolveStages: (stages, recipe, flags, path) => resolveStages(stages, ofTheRun(recipe), ofTheRun(flags), path),
  run: async ({ dryRun, memory, ...settings }, context) => {
    if (dryRun) return plan(settings, memory);
    if (memory !== undefined) {
      throw new StillhouseError({
        code: 'SETTING_UNUSED',
        where: '--memory',
        problem: 'a run takes what it needs',
        remedy: 'Give --dry-run too, or leave it out',
      });
    }
    const interruption = openInterruption(context, 'train');
    const display = openTrainingDisplay(context);
    const result = await trainWatched(settings, {
      stopSignal: interruption.stopSignal,
      events: {
        ...display,
        onPlan: (start) => {
          display.onPlan(start);
          // Before there is nothing to save.
          interruption.begin();
        },
      },
    });
    // The trainer writes the recipe itself, before the first step.
    return { result, exitCode: interruption.exitCode(true), summary: printResult(result) };
  },
});

function printResult(result: TrainingResult): string {
  const { out, isFinished, steps, last, lastHeldOut, tokensPerSecond, peakRssBytes, deviceBytes, caches } = result;
  return printPairs([
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
    ['device memory', deviceBytes === undefined ? undefined : printBytes(deviceBytes)],
    ['page', last && `${out}/${RUN_PAGE_FILE}`],
    ...caches.map(({ location, digest, epochs }): [string, string] =>
      caches.length === 1
        ? ['cache digest', digest]
        : [location, `digest ${digest}, ${printSignificant(epochs, 3)} epochs`],
    ),
  ]);
}

async function plan(settings: StagedSettings, memory: number | undefined): Promise<Outcome> {
  const result = await planTraining(settings, memory);
  // Held-out rows are checked as they are before a run.
  await (await openEvaluator(settings))?.close();
  const { rows, steps, labels, recompute, batch, fits, advice } = result;
  const { items, peakBytes, limitBytes } = result.memory;
  const lines = [
    printPairs([
      ['rows', printCount(rows)],
      ['steps', printCount(steps)],
      ['stage that takes most', result.stage],
      ['labels', labels],
      ['activations', recompute ? 'computed again' : 'kept'],
      ['largest micro-batch', `${printCount(batch.rows)} rows of ${printCount(batch.length)} tokens`],
      ['cache digest', result.cacheDigest],
    ]),
    '',
    printPairs([
      ...items.map(({ what, sizeBytes }): [string, string] => [what, printBytes(sizeBytes)]),
      ['peak memory on the CPU, about', printBytes(peakBytes)],
      ['there is', printBytes(limitBytes)],
    ]),
  ];
  if (!fits) {
    const [last] = advice.slice(-1);
    const isEnough = last !== undefined && last.peakBytes <= limitBytes;
    lines.push(
      '',
      isEnough ? 'It does not fit. With these changes it does:' : 'It does not fit, nor would it with all of these:',
      printPairs(
        advice.map(({ flags, savedBytes, peakBytes: peak, effect }): [string, string] => [
          flags,
          `saves ${printBytes(savedBytes)}, then ${printBytes(peak)} (${effect})`,
        ]),
      ),
    );
    if (!isEnough) lines.push('Take a smaller student, shorter rows or a larger machine.');
  }
  return { result, exitCode: fits ? EXIT_SUCCESS : EXIT_FAILURE, summary: lines.join('\n') };
}
