import {
  EVALUATION_SETTINGS,
  type EvaluationResult,
  type ExactMatchResult,
  evaluateModel,
  type KdResult,
} from '@stillhouse/evaluation';
import { printBytes, printCount, printShare, printSignificant } from '@stillhouse/report';
import { defineCommand } from '../command-line/command.ts';
import type { Progress } from '../terminal/progress.ts';
import { printPairs } from '../terminal/text-table.ts';

type Pairs = Parameters<typeof printPairs>[0];

export const evaluate = defineCommand({
  settings: EVALUATION_SETTINGS,
  run: async (settings, context) => {
    let progress: Progress | undefined;
    let label = '';
    let unit = '';
    // The result has the recipe inside.
    const result = await evaluateModel(settings, {
      onPlan: ({ task, total }) => {
        label = `eval ${task}`;
        unit = task === 'kd' ? 'rows' : 'questions';
        context.note(`${label}: ${printCount(total)} ${unit}`);
      },
      onProgress: ({ done, total, tokens, correct }) => {
        progress ??= context.openProgress({ label, unit, total });
        progress.update({
          done,
          pace: { tokens },
          ...(correct === undefined ? {} : { note: `${printCount(correct)} correct` }),
        });
      },
    });
    progress?.stop();
    return { result, summary: printResult(result, settings.out!) };
  },
});

function printResult(result: EvaluationResult, out: string): string {
  return printPairs([
    ['model', result.model],
    ...(result.task === 'kd' ? printKd(result) : printExactMatch(result)),
    ['speed', `${printCount(result.tokensPerSecond)} tokens/s`],
    ['peak memory', printBytes(result.peakRssBytes)],
    ['written to', out],
  ]);
}

const withError = (value: number, error: number | null | undefined) =>
  error === null || error === undefined
    ? printSignificant(value)
    : `${printSignificant(value)} ± ${printSignificant(error, 2)}`;

function printKd({ kl, ce, perplexity, top1Agreement, standardErrors, ...result }: KdResult): Pairs {
  return [
    ['rows', printCount(result.rows)],
    ['target tokens', printCount(result.targetTokens)],
    ['labels', result.labelDetail],
    ...Object.entries(kl).map(([t, value]) => [`KL at T=${t}`, withError(value, standardErrors.kl[t])] as const),
    ['CE', withError(ce, standardErrors.ce)],
    ['perplexity', printSignificant(perplexity)],
    ['top-1 agreement', withError(top1Agreement, standardErrors.top1Agreement)],
    ['cache digest', result.cacheDigest],
  ];
}

function printExactMatch({ questions, correct, accuracy, interval, truncated }: ExactMatchResult): Pairs {
  return [
    ['questions', printCount(questions)],
    ['correct', `${printCount(correct)} (${printShare(accuracy)})`],
    ['95 % interval', `${printShare(interval.low)} to ${printShare(interval.high)}`],
    ['cut off', truncated === 0 ? undefined : printCount(truncated)],
  ];
}
