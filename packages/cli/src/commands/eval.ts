import {
  EVALUATION_SETTINGS,
  type EvaluationResult,
  type ExactMatchResult,
  evaluateModel,
  type KdResult,
} from '@stillhouse/evaluation';
import { defineCommand } from '../command.ts';
import type { Progress } from '../progress.ts';
import { printBytes, printCount, printPairs, printSignificant } from '../quantities.ts';

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
  const percent = (share: number) => `${(100 * share).toFixed(1)} %`;
  return [
    ['questions', printCount(questions)],
    ['correct', `${printCount(correct)} (${percent(accuracy)})`],
    ['95 % interval', `${percent(interval.low)} to ${percent(interval.high)}`],
    ['cut off', truncated === 0 ? undefined : printCount(truncated)],
  ];
}
