import type { CacheDescription, CachedRow, CacheWriter } from '@stillhouse/teacher-cache';
import type { ScoringStep } from '../scoring/row-scorer.ts';
import type { TeacherSession } from '../teacher/teacher.ts';

/** The work that a writer has left; a place is that of a shard among those of the writer. */
export interface ShardWork {
  /** The rows of a shard, so many. */
  readRows(shard: number, count: number): Promise<readonly CachedRow[]>;
  /** The labels that are computed for it. */
  labelsOf(shard: number): CacheDescription['labels'];
  onStep(place: number, step: ScoringStep): void;
  onShard(place: number): void;
}

/** Scores and writes one shard after the other, from where the writer stands. */
export async function scoreShards(writer: CacheWriter, session: TeacherSession, work: ShardWork): Promise<void> {
  for (let place = writer.completedShards; place < writer.shards.length; place++) {
    const shard = writer.shards[place]!;
    const [first, end] = writer.shardRange(shard);
    const rows = await work.readRows(shard, end - first);
    const labelled = await session.score(rows, work.labelsOf(shard), writer, (step) => work.onStep(place, step));
    await writer.writeShard(shard, labelled, session.settings);
    work.onShard(place);
  }
}

/** The next rows of a source. @param refuse called where there are fewer: its file must have changed */
export async function takeRows<Row extends CachedRow>(
  rows: AsyncGenerator<Row>,
  count: number,
  refuse: () => never,
): Promise<readonly Row[]> {
  const taken: Row[] = [];
  while (taken.length < count) {
    const { done, value } = await rows.next();
    if (done) refuse();
    taken.push(value);
  }
  return taken;
}
