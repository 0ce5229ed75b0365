import { setImmediate } from 'node:timers/promises';
import {
  collectLabels,
  countSelected,
  countTargets,
  joinLabels,
  type LabelOptions,
  type Objective,
  weighRow,
} from '@stillhouse/objectives';
import type { HiddenLayer, LabelledRow, LabelSelection, TeacherCache } from '@stillhouse/teacher-cache';
import type { MicroBatch } from '../step/micro-batch.ts';
import { type DataOrder, type DataPosition, sumLengths } from './data-order.ts';
import { type Batching, groupByLength, layOut } from './step-layout.ts';

/** The rows that a run trains on, known by their length before any label is read. */
export interface TrainingRows {
  /** Index of each row in the cache. */
  readonly indices: readonly number[];
  /** Tokens of each row. */
  readonly lengths: Int32Array;
}

/** One of the caches that a run learns from. */
export interface StepSource {
  readonly cache: Pick<TeacherCache, 'readRow'>;
  readonly rows: TrainingRows;
  /** How its labels are gathered; the objective is that of all sources. */
  readonly labels: LabelOptions;
  /** Stands behind the ids of its rows, where there are several caches. */
  readonly name?: string;
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
  readonly batchTokens: number;
  readonly accumulate: number;
  readonly batching: Batching;
  /** Of the student's attention, as `measureColumnCost` has it. */
  readonly columnCost: number;
  /** Share of each row's target positions that count. */
  readonly selectTokens: number;
  /** Gives up after the rows that are being read. */
  readonly signal?: AbortSignal;
}

/** Reads the rows of the step that begins at `position`, with exactly the labels that the objective needs. */
export async function loadStepData(
  sources: readonly StepSource[],
  order: DataOrder,
  position: DataPosition,
  { batchTokens, accumulate, batching, columnCost, selectTokens, signal }: StepDataOptions,
): Promise<StepData> {
  const { rows: taken, next } = order.take(position, batchTokens);
  const lengths = taken.map(({ source, row }) => sources[source]!.rows.lengths[row]!);
  const select = selectLabels(sources[0]!.labels.objective);
  const microBatches: MicroBatch[] = [];
  const rowIds: string[] = [];
  let [targets, denominator, computed] = [0, 0, 0];
  for (const group of groupByLength([...taken.keys()], lengths, accumulate, columnCost)) {
    const sequences: Int32Array[] = [];
    const parts = [];
    // The labels of each cache are gathered in its own way, and stand together.
    for (const [index, { cache, rows, labels, name }] of sources.entries()) {
      const own = group.filter((at) => taken[at]!.source === index).map((at) => rows.indices[taken[at]!.row]!);
      if (own.length === 0) continue;
      const labelled = await readRows(own, (row) => cache.readRow(row, select), signal);
      for (const { row } of labelled) {
        sequences.push(row.inputIds);
        rowIds.push(name === undefined ? row.id : `${row.id} of ${name}`);
        const counted = countSelected(countTargets(row.lossMask), selectTokens);
        targets += counted;
        denominator += counted * weighRow(row, labels.taskWeights);
      }
      parts.push({ labels: collectLabels(labelled, labels), rows: labelled.length });
    }
    const batch = layOut(sequences, batching, columnCost);
    computed += batch.rows * batch.length;
    microBatches.push({ sequences, batch, labels: joinLabels(parts) });
  }
  const tokens = sumLengths(lengths);
  return { microBatches, rowIds, tokens, paddingShare: 1 - tokens / computed, targets, denominator, next };
}

/** The labels that steps of an objective are made of. */
export function selectLabels({ labels, features = [] }: Objective): LabelSelection {
  return {
    topk: labels.kind === 'topk' || (labels.kind === 'full' && labels.refinement !== undefined),
    sampled: labels.kind === 'sampled',
    hidden: [
      ...new Set<HiddenLayer>([
        ...(labels.kind === 'full' ? (['final'] as const) : []),
        ...features.map(({ teacher }) => teacher),
      ]),
    ],
  };
}

/** Reads under way at once: from afar the files of several shards come side by side. */
const READS_AT_ONCE = 4;

async function readRows(
  rows: readonly number[],
  read: (row: number) => Promise<LabelledRow>,
  signal?: AbortSignal,
): Promise<readonly LabelledRow[]> {
  const labelled: LabelledRow[] = [];
  let [begun, failures] = [0, [] as unknown[]];
  const readOn = async () => {
    while (begun < rows.length && failures.length === 0 && signal?.aborted !== true) {
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
  signal?.throwIfAborted();
  return labelled;
}
