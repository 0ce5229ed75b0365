import { createStreamedWeights } from '@stillhouse/model-runner';
import { openEngine } from '@stillhouse/runtime';
import type { CacheDescription, CachedRow, HiddenCodebook, LabelledRow } from '@stillhouse/teacher-cache';
import { openBuildInputs } from '../build/build-inputs.ts';
import type { ScoringStep } from '../scoring/row-scorer.ts';
import type { BuildSettings } from '../settings/build-settings.ts';
import { openFolderTeacher } from '../teacher/folder-teacher.ts';
import { openTeacherSession } from '../teacher/teacher.ts';
import { fitCodebook } from './codebook-fitting.ts';
import { measureTransform } from './hidden-calibration.ts';

/** Some rows of a data set with the teacher's labels as exactly as they come, to try policies on. */
export interface Pilot {
  readonly description: CacheDescription;
  /** Rows with top-k labels, log_z, and float32 final hidden states; evenly spread over the data. */
  readonly rows: readonly LabelledRow[];
  /** Of the whole data set. */
  readonly totals: { readonly rows: number; readonly tokens: number; readonly positions: number };
  /**
   * Codebooks of several sizes, fitted to the states of some of the rows. @throws StillhouseError as the engine does
   */
  fitCodebooks(rows: readonly LabelledRow[], codedBytes: readonly number[]): Promise<readonly HiddenCodebook[]>;
}

export interface PilotOptions {
  /** Share of the rows. */
  readonly share: number;
  /** More rows than that, if it takes them to have so many label positions. */
  readonly leastPositions: number;
  /** Ids at each position; policies with fewer are tried on them. */
  readonly topK: number;
  readonly onPlan?: (plan: { readonly rows: number; readonly positions: number }) => void;
  readonly onStep?: (step: ScoringStep) => void;
}

/**
 * Scores a part of a data set with a teacher and writes nothing.
 * @throws StillhouseError as `buildTeacherCache` does before it writes
 */
export async function scorePilot(settings: BuildSettings, options: PilotOptions): Promise<Pilot> {
  const inputs = await openBuildInputs({
    ...settings,
    out: settings.out ?? 'pilot',
    labels: ['topk', 'hidden'],
    topK: options.topK,
    topP: undefined,
    minK: undefined,
    maxK: undefined,
    packing: 'plain',
    logprobDtype: 'f32',
    hiddenLayers: ['final'],
    hiddenDtype: 'f32',
    hiddenBytes: undefined,
  });
  try {
    const { description, shards, summary } = inputs;
    const positions = shards.reduce((sum, shard) => sum + shard.positions, 0);
    const needed = Math.ceil((options.leastPositions * summary.rowCount) / Math.max(1, positions));
    const count = Math.min(summary.rowCount, Math.max(1, Math.ceil(options.share * summary.rowCount), needed));
    const wanted = new Set(Array.from({ length: count }, (_, i) => Math.floor((i * summary.rowCount) / count)));
    const chosen: CachedRow[] = [];
    for await (const row of inputs.rows((number) => wanted.has(number))) chosen.push(row);
    options.onPlan?.({ rows: count, positions: Math.round((positions * count) / summary.rowCount) });
    const session = await openTeacherSession(inputs.teacher, settings);
    try {
      const noScales = { scale: () => undefined, setScale: async () => {} };
      const rows = await session.score(chosen, description.labels, noScales, options.onStep);
      return {
        description,
        rows,
        totals: { rows: summary.rowCount, tokens: summary.tokenCount, positions },
        fitCodebooks: (some, codedBytes) => fitCodebooks(settings, description.labels, some, codedBytes),
      };
    } finally {
      await session.close();
    }
  } finally {
    await inputs.close();
  }
}

async function fitCodebooks(
  { teacher, device, threads, temperatures }: BuildSettings,
  labels: CacheDescription['labels'],
  rows: readonly LabelledRow[],
  codedBytes: readonly number[],
): Promise<readonly HiddenCodebook[]> {
  const { weights: source, close } = await openFolderTeacher(teacher!, labels);
  try {
    const engine = await openEngine({ device, ...(threads === undefined ? {} : { threads }) });
    try {
      const weights = createStreamedWeights(engine, source, { float: 'float32', keepAll: false });
      const { hiddenSize } = source.config;
      const states = joinStates(rows.map(({ hidden }) => hidden!.get('final')!.values as Float32Array));
      const shape = [states.length / hiddenSize, hiddenSize];
      const uploaded = engine.upload(states, 'float32', shape, { transfer: true });
      const readout = { head: await weights.takeOutputMatrix(), temperatures };
      const { transform, coordinates } = await measureTransform(engine, uploaded, readout);
      return codedBytes.map((bytes) => fitCodebook(transform, coordinates, bytes));
    } finally {
      await engine.close();
    }
  } finally {
    await close();
  }
}

/** Rows of states one after the other. */
export function joinStates(parts: readonly Float32Array[]): Float32Array<ArrayBuffer> {
  const joined = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let filled = 0;
  for (const part of parts) {
    joined.set(part, filled);
    filled += part.length;
  }
  return joined;
}
