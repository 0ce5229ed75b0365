import { setImmediate } from 'node:timers/promises';
import { collectLabels, countSelected, countTargets, type LabelOptions, weighRow } from '@stillhouse/objectives';
import type { HiddenLayer, LabelledRow, TeacherCache } from '@stillhouse/teacher-cache';
import { type DataPosition, takeStepRows } from './data-order.ts';
import type { MicroBatch } from './micro-batch.ts';
import { type Batching, groupByLength, layOut } from './step-layout.ts';

/** The rows that a run trains on, known by their length before any label is read. */
export interface TrainingRows {
  /** Index of each row in the cache. */
  readonly indices: readonly number[];
  /** Tokens of each row. */
  readonly lengths: Int32Array;
}

/** All that one optimiser step consumes. */
export interface StepData {
  readonly microBatches: readonly MicroBatch[];
  readonly rowIds: readonly string[];
  readonly tokens: number;
  /** Share of the positions that are computed which hold no token. */
  readonly paddingShare: number;
  /** Target tokens of the whole step that count in its losses. */
  readonly targets: number;
  /** The sum of their weights: the one denominator of its losses; `targets` where all weigh 1. */
  readonly denominator: number;
  readonly next: DataPosition;
}

export interface StepDataOptions {
  readonly labels: LabelOptions;
  readonly seed: number;
  readonly batchTokens: number;
  readonly accumulate: number;
  readonly batching: Batching;
  /** Of the student's attention, as `measureColumnCost` has it. */
  readonly columnCost: number;
  /** Share of each row's target positions that count. */
  readonly selectTokens: number;
}

/** Reads the rows of the step that begins at `position`, with exactly the labels that the objective needs. */
export async function loadStepData(
  cache: TeacherCache,
  rows: TrainingRows,
  position: DataPosition,
  options: StepDataOptions,
): Promise<StepData> {
  const { accumulate, batching, columnCost } = options;
  const { rows: taken, next } = takeStepRows(rows.lengths, options.seed, position, options.batchTokens);
  const { objective } = options.labels;
  const { labels } = objective;
  const needs = {
    topk: labels.kind === 'topk' || (labels.kind === 'full' && labels.refinement !== undefined),
    sampled: labels.kind === 'sampled',
    hidden: [
      ...new Set<HiddenLayer>([
        ...(labels.kind === 'full' ? (['final'] as const) : []),
        ...(objective.features ?? []).map(({ teacher }) => teacher),
      ]),
    ],
  };
  const microBatches: MicroBatch[] = [];
  const rowIds: string[] = [];
  let [targets, denominator, computed] = [0, 0, 0];
  for (const group of groupByLength(taken, rows.lengths, accumulate, columnCost)) {
    const labelled = await readRows(group, (row) => cache.readRow(rows.indices[row]!, needs));
    for (const { row } of labelled) {
      rowIds.push(row.id);
      const counted = countSelected(countTargets(row.lossMask), options.selectTokens);
      targets += counted;
      denominator += counted * weighRow(row, options.labels.taskWeights);
    }
    const sequences = labelled.map(({ row }) => row.inputIds);
    const batch = layOut(sequences, batching, columnCost);
    computed += batch.rows * batch.length;
    microBatches.push({ sequences, batch, labels: collectLabels(labelled, options.labels) });
  }
  const tokens = taken.reduce((sum, row) => sum + rows.lengths[row]!, 0);
  return { microBatches, rowIds, tokens, paddingShare: 1 - tokens / computed, targets, denominator, next };
}

/** Reads under way at once: from afar the files of several shards come side by side. */
const READS_AT_ONCE = 4;

async function readRows(
  rows: readonly number[],
  read: (row: number) => Promise<LabelledRow>,
): Promise<readonly LabelledRow[]> {
  const labelled: LabelledRow[] = [];
  let [begun, failures] = [0, [] as unknown[]];
  const readOn = async () => {
    while (begun < rows.length && failures.length === 0) {
      const at = begun++;
      try {
        labelled[at] = await read(rows[at]!);
      } catch (error) {
        failures = [...failures, error];
      }
      // What is in memory is read without a pause; the step that computes meanwhile waits for messages.
      await setImmediate();
    }
  };
  await Promise.all(Array.from({ length: READS_AT_ONCE }, readOn));
  if (failures.length > 0) throw failures[0];
  return labelled;
}
