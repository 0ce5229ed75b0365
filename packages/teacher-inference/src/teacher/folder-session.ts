import type { ModelWeights } from '@stillhouse/checkpoint';
import { createStreamedWeights, measureWeights } from '@stillhouse/model-runner';
import { type Engine, measureAvailableMemory, openEngine } from '@stillhouse/runtime';
import type { CacheDescription } from '@stillhouse/teacher-cache';
import { createRowScorer, type RowScorer } from '../scoring/row-scorer.ts';
import { needTeacher } from '../settings/label-settings.ts';
import { type SessionSettings, type TeacherSession, withoutLabels } from './teacher.ts';

/** Scores with the weights of a folder on an engine of its own. */
export async function openFolderSession(
  source: ModelWeights,
  { device, threads, batchTokens, positions }: SessionSettings,
): Promise<TeacherSession> {
  const engine = await openEngine({ device, ...(threads === undefined ? {} : { threads }) });
  const keepAll = measureWeights(source.config) <= (await measureResidentBudget(engine));
  const weights = createStreamedWeights(engine, source, { float: 'float32', keepAll });
  const scorers = new Map<string, Promise<RowScorer>>();
  const prepare = (labels: CacheDescription['labels']): Promise<RowScorer> => {
    // The output matrix is kept, not scored.
    const key = JSON.stringify({ ...labels, head: false });
    const scorer =
      scorers.get(key) ?? createRowScorer(engine, source.config, weights, { labels, positions, batchTokens });
    scorers.set(key, scorer);
    return scorer;
  };
  return {
    device: engine.deviceReason,
    weights: keepAll ? 'resident' : 'streamed',
    settings: { device: engine.device, batchTokens },
    score: async (rows, labels, scales, onStep) => {
      if (!needTeacher(labels)) return withoutLabels(rows, positions);
      return (await prepare(labels)).score(rows, scales, onStep);
    },
    close: () => engine.close(),
  };
}

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
