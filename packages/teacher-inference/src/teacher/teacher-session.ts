import { createStreamedWeights, measureWeights } from '@stillhouse/model-runner';
import { type Engine, measureAvailableMemory, openEngine } from '@stillhouse/runtime';
import {
  type CacheDescription,
  type CachedRow,
  type LabelledRow,
  labelPositions,
  type ScoringSettings,
} from '@stillhouse/teacher-cache';
import type { Teacher } from '../build/build-inputs.ts';
import { createRowScorer, type LayerScales, type RowScorer, type ScoringStep } from '../scoring/row-scorer.ts';
import type { BuildSettings } from '../settings/build-settings.ts';
import { needTeacher } from '../settings/label-settings.ts';

/** A teacher ready to score; what it needs is compiled when labels of a kind are first asked for. */
export interface TeacherSession {
  /** Where it is computed and why; null where nothing is. */
  readonly device: string | null;
  /** Whether the teacher's weights stay in memory or are read again for every shard; null without a teacher. */
  readonly weights: 'resident' | 'streamed' | null;
  /** What may change the last bits of a label. */
  readonly settings: ScoringSettings;
  /**
   * The labels of rows that are scored together, a shard's.
   * @throws StillhouseError of `RowScorer.score`
   */
  score(
    rows: readonly CachedRow[],
    labels: CacheDescription['labels'],
    scales: LayerScales,
    onStep?: (step: ScoringStep) => void,
  ): Promise<readonly LabelledRow[]>;
  close(): Promise<void>;
}

export type SessionSettings = Pick<BuildSettings, 'device' | 'threads' | 'batchTokens' | 'positions'>;

/** @param teacher null where no labels are wanted */
export async function openTeacherSession(teacher: Teacher | null, settings: SessionSettings): Promise<TeacherSession> {
  if (teacher === null) return openRowSession(settings);
  const { device, threads, batchTokens } = settings;
  const engine = await openEngine({ device, ...(threads === undefined ? {} : { threads }) });
  const keepAll = measureWeights(teacher.config) <= (await measureResidentBudget(engine));
  const weights = createStreamedWeights(engine, teacher.weights, { float: 'float32', keepAll });
  const scorers = new Map<string, Promise<RowScorer>>();
  const prepare = (labels: CacheDescription['labels']): Promise<RowScorer> => {
    // The output matrix is kept, not scored.
    const key = JSON.stringify({ ...labels, head: false });
    const options = { labels, positions: settings.positions, batchTokens };
    const scorer = scorers.get(key) ?? createRowScorer(engine, teacher.config, weights, options);
    scorers.set(key, scorer);
    return scorer;
  };
  return {
    device: engine.deviceReason,
    weights: keepAll ? 'resident' : 'streamed',
    settings: { device: engine.device, batchTokens },
    score: async (rows, labels, scales, onStep) => {
      if (!needTeacher(labels)) return withoutLabels(rows, settings.positions);
      return (await prepare(labels)).score(rows, scales, onStep);
    },
    close: () => engine.close(),
  };
}

const openRowSession = ({ positions }: SessionSettings): TeacherSession => ({
  device: null,
  weights: null,
  settings: {},
  score: async (rows) => withoutLabels(rows, positions),
  close: async () => {},
});

const withoutLabels = (rows: readonly CachedRow[], positions: BuildSettings['positions']): readonly LabelledRow[] =>
  rows.map((row) => ({ row, positions: labelPositions(row.lossMask, positions) }));

/**
 * Weights stay in memory when they take at most this much. Reading a layer again costs a few percent of what it takes
 * to compute it for a shard of some thousand tokens, so only small teachers are worth the memory.
 */
const RESIDENT_SHARE = 0.1;

/** On a CUDA device reading and widening a layer takes longer than computing it. */
const DEVICE_RESIDENT_SHARE = 0.5;

async function measureResidentBudget(engine: Engine): Promise<number> {
  const { device } = await engine.memory();
  if (device !== undefined) return DEVICE_RESIDENT_SHARE * device.totalBytes;
  return RESIDENT_SHARE * measureAvailableMemory();
}
