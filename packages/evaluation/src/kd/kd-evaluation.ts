import { type DecoderOnDevice, planLikeLengths } from '@stillhouse/model-runner';
import { countTargets } from '@stillhouse/objectives';
import type { Engine } from '@stillhouse/runtime';
import { estimateRatio, type RowSum } from '@stillhouse/statistics';
import type { LabelledRow, TeacherCache } from '@stillhouse/teacher-cache';
import { createKdRunner } from './kd-batch.ts';
import type { KdLabels } from './kd-labels.ts';
import type { KdRow } from './kd-rows.ts';

/** Tokens of a batch, whatever the batch size: bounds the memory of the layers' intermediate values. */
const BATCH_TOKENS = 2048;

export interface KdOptions {
  readonly labels: KdLabels;
  readonly temperatures: readonly number[];
  /** Rows of the cache to evaluate, with their lengths. */
  readonly rows: readonly KdRow[];
  readonly batchSize: number;
  readonly chunkPositions: number;
  /** Told after each batch: rows and target tokens done so far. */
  readonly onProgress?: (done: { readonly rows: number; readonly tokens: number }) => void;
}

/** Means over target tokens, in nats; standard errors treat rows as the independent units, null with one row. */
export interface KdFigures {
  readonly rows: number;
  /** All tokens of the rows, and those that are predicted. */
  readonly tokens: number;
  readonly targetTokens: number;
  /** KL(teacher‖model) by temperature, without the factor T². */
  readonly kl: Readonly<Record<string, number>>;
  readonly ce: number;
  /** exp(ce) */
  readonly perplexity: number;
  /** Share of target tokens where model and teacher have the same most probable id. */
  readonly top1Agreement: number;
  readonly standardErrors: {
    readonly kl: Readonly<Record<string, number | null>>;
    readonly ce: number | null;
    readonly top1Agreement: number | null;
  };
  /** Each row by itself, in the order of the cache: two models are compared row by row. */
  readonly records: readonly KdRecord[];
}

/** Means over the target tokens of one row. */
export interface KdRecord {
  readonly id: string;
  readonly targetTokens: number;
  readonly kl: Readonly<Record<string, number>>;
  readonly ce: number;
  readonly top1Agreement: number;
}

/** Holds a model against a cache's labels: no teacher, and logits for one chunk of positions at a time. */
export async function evaluateKd(
  engine: Engine,
  model: DecoderOnDevice,
  cache: TeacherCache,
  options: KdOptions,
): Promise<KdFigures> {
  const { labels, temperatures } = options;
  const runner = await createKdRunner(engine, model, cache, options);
  try {
    const needs = {
      topk: labels.hasTopK,
      sampled: false,
      hidden: labels.soft.kind === 'full' ? (['final'] as const) : [],
    };
    const sums = { nll: [] as RowSum[], agrees: [] as RowSum[], kl: temperatures.map(() => [] as RowSum[]) };
    const byTemperature = <T>(values: readonly T[]) =>
      Object.fromEntries(temperatures.map((temperature, i) => [String(temperature), values[i]!]));
    const records: { readonly index: number; readonly record: KdRecord }[] = [];
    let targetTokens = 0;
    const lengths = options.rows.map(({ length }) => length);
    const plan = planLikeLengths(lengths, { rows: options.batchSize, tokens: BATCH_TOKENS });
    for (const group of plan.map((members) => members.map((i) => options.rows[i]!))) {
      const labelled: LabelledRow[] = [];
      for (const { index } of group) labelled.push(await cache.readRow(index, needs));
      const positions = await runner.run(labelled);
      labelled.forEach(({ row }, at) => {
        const tokens = countTargets(row.lossMask);
        const add = (into: RowSum[], value: (position: number) => number): number => {
          let sum = 0;
          positions.rows.forEach((one, position) => {
            if (one === at) sum += value(position);
          });
          into.push({ sum, tokens });
          return sum / tokens;
        };
        records.push({
          index: group[at]!.index,
          record: {
            id: row.id,
            targetTokens: tokens,
            kl: byTemperature(sums.kl.map((into, i) => add(into, (position) => Number(positions.kl[i]![position])))),
            ce: add(sums.nll, (position) => Number(positions.nll[position])),
            top1Agreement: add(sums.agrees, (position) => Number(positions.agrees[position])),
          },
        });
        targetTokens += tokens;
      });
      options.onProgress?.({ rows: sums.nll.length, tokens: targetTokens });
    }
    const [ce, agreement, kl] = [estimateRatio(sums.nll), estimateRatio(sums.agrees), sums.kl.map(estimateRatio)];
    return {
      rows: options.rows.length,
      tokens: options.rows.reduce((sum, { length }) => sum + length, 0),
      targetTokens,
      kl: byTemperature(kl.map(({ mean }) => mean)),
      ce: ce.mean,
      perplexity: Math.exp(ce.mean),
      top1Agreement: agreement.mean,
      standardErrors: {
        kl: byTemperature(kl.map(({ standardError }) => standardError)),
        ce: ce.standardError,
        top1Agreement: agreement.standardError,
      },
      records: records.sort((a, b) => a.index - b.index).map(({ record }) => record),
    };
  } finally {
    runner.close();
  }
}
