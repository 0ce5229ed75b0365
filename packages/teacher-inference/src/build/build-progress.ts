import type { ScoringStep } from '../scoring/row-scorer.ts';
import type { TeacherWork } from '../teacher/teacher.ts';
import type { ShardCounts } from './build-inputs.ts';
import type { ShardWork } from './score-shards.ts';

export interface BuildProgress {
  /** The shard at work, from 1. */
  readonly shard: number;
  readonly shards: number;
  /** The layer just computed, from 1; `readout` while labels are read off, `written` when the shard is. */
  readonly stage: number | 'readout' | 'written';
  /** Rows of finished shards, those of earlier runs included. */
  readonly rowsDone: number;
  readonly rows: number;
  /** Finished tokens, those of earlier runs included; a row half way through the layers counts half. */
  readonly tokensDone: number;
  readonly tokens: number;
  /** Of this run. */
  readonly tokensPerSecond: number;
  /** null until it can be told. */
  readonly etaSeconds: number | null;
}

export interface ProgressTracker {
  step(shard: number, step: ScoringStep): BuildProgress;
  finishShard(shard: number): BuildProgress;
  readonly tokensPerSecond: number;
}

/**
 * Counts work in multiply-adds, so that layers and readout, long rows and short ones weigh what they cost.
 * @param work null where nothing is scored; then tokens are work
 * @param done shards that earlier runs finished
 */
export function trackProgress(
  work: TeacherWork | null,
  shards: readonly ShardCounts[],
  done: number,
  now: () => number = () => performance.now(),
): ProgressTracker {
  const workOf = ({ tokens, positions }: ShardCounts) =>
    work === null ? tokens : tokens * work.token + positions * work.position;
  const sum = (list: readonly ShardCounts[], measure: (shard: ShardCounts) => number) =>
    list.reduce((total, shard) => total + measure(shard), 0);
  const tokens = sum(shards, (shard) => shard.tokens);
  const startedAt = now();
  const firstTokens = sum(shards.slice(0, done), (shard) => shard.tokens);
  const ahead = sum(shards.slice(done), workOf);
  let workFinished = 0;
  let workOfShard = 0;

  const tokensOf = (shard: number) => {
    const share = workOfShard / workOf(shards[shard]!);
    return sum(shards.slice(0, shard), (one) => one.tokens) + Math.min(1, share) * shards[shard]!.tokens;
  };
  let tokensDone = firstTokens;
  const seconds = () => Math.max(1e-3, (now() - startedAt) / 1000);
  const speed = () => (tokensDone - firstTokens) / seconds();
  const report = (shard: number, stage: BuildProgress['stage'], rowsDone: number): BuildProgress => {
    const workDone = workFinished + workOfShard;
    return {
      shard: shard + 1,
      shards: shards.length,
      stage,
      rowsDone,
      rows: sum(shards, ({ rows }) => rows),
      tokensDone,
      tokens,
      tokensPerSecond: speed(),
      etaSeconds: workDone > 0 ? Math.max(0, ((ahead - workDone) * seconds()) / workDone) : null,
    };
  };
  const rowsBefore = (shard: number) => sum(shards.slice(0, shard), ({ rows }) => rows);
  return {
    step: (shard, { stage, work: added }) => {
      workOfShard += added;
      tokensDone = tokensOf(shard);
      return report(shard, stage, rowsBefore(shard));
    },
    finishShard: (shard) => {
      workFinished += workOf(shards[shard]!);
      workOfShard = 0;
      tokensDone = sum(shards.slice(0, shard + 1), (one) => one.tokens);
      return report(shard, 'written', rowsBefore(shard + 1));
    },
    get tokensPerSecond() {
      return speed();
    },
  };
}

/** Counts what is done, whether or not anyone listens. */
export function tellProgress(
  tracker: ProgressTracker,
  onProgress: ((progress: BuildProgress) => void) | undefined,
): Pick<ShardWork, 'onStep' | 'onShard'> {
  return {
    onStep: (place, step) => {
      const done = tracker.step(place, step);
      onProgress?.(done);
    },
    onShard: (place) => {
      const done = tracker.finishShard(place);
      onProgress?.(done);
    },
  };
}
