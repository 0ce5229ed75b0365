import { StillhouseError } from '@stillhouse/errors';
import { describeSize } from '../format/cache-size.ts';
import type { ManifestBody } from '../format/manifest.ts';
import type { CacheWriter } from './cache-writer.ts';
import { openCommittedState } from './committed-state.ts';
import { openFixedFiles } from './fixed-files.ts';
import { openFixedScales } from './fixed-scales.ts';
import { openShardQueue } from './shard-queue.ts';
import type { WriterPlan } from './writer-plan.ts';

/** A writer for the tasks of a plan, from a state in which some are finished. */
export async function makeShardWriter(plan: WriterPlan, initial: ManifestBody): Promise<CacheWriter> {
  const state = openCommittedState(plan, initial);
  const scales = await openFixedScales(plan, state);
  const fixed = openFixedFiles(plan, state);
  const queue = await openShardQueue(plan, state, scales.known);
  return {
    description: initial.description,
    totalRows: initial.rows.planned,
    shardCount: plan.shardCount,
    shards: plan.tasks.map(({ index }) => index),
    get completedShards() {
      return state.body.complete ? plan.tasks.length : state.body.shards.length;
    },
    get isComplete() {
      return state.body.complete;
    },
    get hasTokenizerFiles() {
      return fixed.hasTokenizerFiles;
    },
    get hasOutputMatrix() {
      return fixed.hasOutputMatrix;
    },
    get size() {
      return describeSize(state.body);
    },
    shardRange: (index) => {
      const { firstRow, rowCount } = plan.rangeOf(index);
      return [firstRow, firstRow + rowCount] as const;
    },
    putTokenizerFiles: fixed.putTokenizerFiles,
    putOutputMatrix: fixed.putOutputMatrix,
    setScale: scales.setScale,
    scale: (layer) => scales.known.get(layer),
    adoptCalibration: scales.adoptCalibration,
    writeShard: queue.writeShard,
    finish: async () => {
      if (state.body.complete) return;
      refuseUnfinished(plan, state.body, fixed.listMissing());
      await state.publish();
    },
    close: async () => {
      await queue.settle();
      await state.close();
    },
  };
}

function refuseUnfinished({ folder, tasks }: WriterPlan, { shards }: ManifestBody, fixed: readonly string[]): void {
  const missing = [...(shards.length < tasks.length ? [`${tasks.length - shards.length} shards`] : []), ...fixed];
  if (missing.length === 0) return;
  throw new StillhouseError({
    code: 'CACHE_UNFINISHED',
    where: folder,
    problem: `the cache cannot be called complete without ${missing.join(', ')}`,
  });
}
