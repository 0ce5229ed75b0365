import { StillhouseError } from '@stillhouse/errors';
import { openRowChecks, refuseMissingScale } from '../check/writer-checks.ts';
import type { HiddenScale } from '../codecs/hidden-scale.ts';
import { loadZstd } from '../codecs/zstd.ts';
import type { HiddenLayer } from '../format/hidden-layer.ts';
import type { LabelledRow } from '../format/labelled-row.ts';
import type { ManifestBody, ShardFiles } from '../format/manifest.ts';
import { recordShard, type ScoringSettings } from '../format/provenance.ts';
import type { CacheWriter } from './cache-writer.ts';
import type { CommittedState } from './committed-state.ts';
import { openGroupCodecs, openShardFileSet, type WrittenFiles } from './shard-file-set.ts';
import { restrictLabels, type ShardTask } from './shard-tasks.ts';
import type { WriterPlan } from './writer-plan.ts';

/** The shards of a plan, in its order; one is encoded while those before it are synced. */
export interface ShardQueue extends Pick<CacheWriter, 'writeShard'> {
  /** What is under way is stored or has failed. */
  settle(): Promise<void>;
}

/** A shard on its way: its rows are encoded before those of the next, and it is in the manifest before the next is. */
interface ShardUnderWay {
  readonly encoded: Promise<void>;
  readonly stored: Promise<void>;
}

const NOTHING: ShardUnderWay = { encoded: Promise.resolve(), stored: Promise.resolve() };

export async function openShardQueue(
  plan: WriterPlan,
  state: CommittedState,
  scales: ReadonlyMap<HiddenLayer, HiddenScale>,
): Promise<ShardQueue> {
  const writeTask = await openTaskWriter(plan, state, scales);
  let begun = state.body.shards.length;
  let underWay = 0;
  let latest = NOTHING;
  return {
    writeShard: async (index, labelled, settings = {}) => {
      const task = state.body.complete ? undefined : plan.tasks[begun];
      if (index !== task?.index || labelled.length !== task.rowCount) {
        return refuseShard(plan, index, labelled.length, task);
      }
      const former = latest;
      let markEncoded = () => {};
      const encoded = new Promise<void>((resolve) => {
        markEncoded = resolve;
      });
      begun += 1;
      underWay += 1;
      const stored = writeTask(task, { labelled, settings }, former, markEncoded).finally(() => {
        markEncoded();
        underWay -= 1;
        if (underWay > 0) return;
        // What failed may be tried again.
        begun = state.body.shards.length;
        latest = NOTHING;
      });
      latest = { encoded, stored };
      return stored;
    },
    settle: () => latest.stored.catch(() => {}),
  };
}

function refuseShard({ shardCount }: WriterPlan, index: number, rowCount: number, next: ShardTask | undefined): never {
  throw new StillhouseError({
    code: 'CACHE_SHARD_UNEXPECTED',
    where: `shard ${index}`,
    problem: 'shards are written in order, each with its rows',
    expected:
      next === undefined
        ? 'none, the cache is complete'
        : `shard ${next.index} of ${shardCount} with ${next.rowCount} rows`,
    got: `${rowCount} rows for shard ${index}`,
  });
}

interface ShardToWrite {
  readonly labelled: readonly LabelledRow[];
  readonly settings: ScoringSettings;
}

type TaskWriter = (
  task: ShardTask,
  shard: ShardToWrite,
  former: ShardUnderWay,
  markEncoded: () => void,
) => Promise<void>;

/** The files of a shard are on the disk before its entry in the manifest is. */
async function openTaskWriter(
  plan: WriterPlan,
  state: CommittedState,
  scales: ReadonlyMap<HiddenLayer, HiddenScale>,
): Promise<TaskWriter> {
  const { description } = state.body;
  const rowIds = new Set(plan.takenIds);
  const codecsOf = openGroupCodecs(await loadZstd(), scales);
  return async (task, shard, former, markEncoded) => {
    const written = restrictLabels(description, task.groups);
    refuseMissingScale(written, scales);
    await former.encoded;
    state.requireOpen();
    const checks = openRowChecks(written, rowIds, task.formerIds);
    let abort = async () => {};
    try {
      const files = await openShardFileSet(plan.folder, task, description, codecsOf);
      abort = files.abort;
      for (const row of shard.labelled) {
        checks.check(row);
        await files.push(row);
      }
      await files.flush();
      markEncoded();
      // Only now: where the one before could not be stored nothing of this one stays.
      await former.stored;
      state.requireOpen();
      const committed = await files.commit();
      const made = { generator: plan.generator, settings: shard.settings };
      await state.commit(addShard(state.body, task, shard.labelled, { files: committed, made }));
    } catch (error) {
      checks.forget();
      // Shards settle in order, so that the last one stands for all.
      await former.stored.catch(() => {});
      throw error;
    } finally {
      await abort();
    }
  };
}

/** The state with one more shard. */
function addShard(
  { description, rows, shards, provenance }: ManifestBody,
  { firstRow, rowCount, groups, former }: ShardTask,
  labelled: readonly LabelledRow[],
  { files, made }: { readonly files: WrittenFiles; readonly made: Parameters<typeof recordShard>[3] },
): Pick<ManifestBody, 'rows' | 'shards' | 'provenance'> {
  const shard = {
    firstRow,
    rowCount,
    tokenCount: labelled.reduce((sum, { row }) => sum + row.inputIds.length, 0),
    positionCount: labelled.reduce((sum, { positions }) => sum + positions.length, 0),
    files: { ...former?.files, ...files } as ShardFiles,
  };
  const records = recordShard(description, rows.planned, { firstRow, rowCount, groups }, made);
  return {
    rows: { planned: rows.planned, stored: rows.stored + rowCount },
    shards: [...shards, shard],
    provenance: [...provenance, ...records],
  };
}
