import { StillhouseError } from '@stillhouse/errors';
import { findPartition, parsePartition } from '@stillhouse/teacher-inference';
import type { SweepEvents } from './sweep-events.ts';
import type { ShareSettings } from './sweep-settings.ts';

/**
 * The runs that this process works on: those of `only`, of them every n-th where there is a partition, by the setting
 * or as a cluster's scheduler says.
 * @param onPartition told where the partition comes from, if not from the setting
 * @throws StillhouseError SWEEP_RUN_UNKNOWN, PARTITION_INVALID
 */
export function chooseRuns<Run extends { readonly name: string }>(
  runs: readonly Run[],
  { only, partition }: ShareSettings,
  onPartition?: SweepEvents['onPartition'],
): readonly Run[] {
  const unknown = only?.find((name) => !runs.some((run) => run.name === name));
  if (unknown !== undefined) {
    throw new StillhouseError({
      code: 'SWEEP_RUN_UNKNOWN',
      where: '--only',
      problem: 'the sweep has no run of this name',
      expected: `one of ${runs.map(({ name }) => name).join(', ')}`,
      got: unknown,
    });
  }
  const chosen = only === undefined ? runs : runs.filter(({ name }) => only.includes(name));
  const found = partition === undefined ? findPartition(process.env) : undefined;
  if (found !== undefined) onPartition?.(found);
  const part = parsePartition(partition ?? found?.setting);
  return part === undefined ? chosen : chosen.filter((_, at) => at % part.count === part.index - 1);
}
