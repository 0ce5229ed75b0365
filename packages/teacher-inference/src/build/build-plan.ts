import { type CacheSize, estimateCacheSize } from '@stillhouse/teacher-cache';
import type { BuildSettings } from '../settings/build-settings.ts';
import { type BuildInputs, openBuildInputs } from './build-inputs.ts';

/** What a build will do. */
export interface BuildPlan {
  readonly out: string;
  readonly rows: number;
  readonly tokens: number;
  /** Tokens that are to be predicted. */
  readonly targetTokens: number;
  /** Positions at which labels are stored. */
  readonly labelPositions: number;
  /** Rows that --max-length cuts. */
  readonly truncatedRows: number;
  readonly longestRow: { readonly id: string; readonly line: number; readonly length: number };
  readonly shards: number;
  /** Estimated, by group: the most that packed, ragged and sampled labels can take. Tokenizer files are left out. */
  readonly size: CacheSize;
  /** Of what grows with the label positions, by label position; null for `labels none`. */
  readonly bytesPerPosition: number | null;
}

/**
 * What `buildTeacherCache` would build with these settings. Reads all rows, writes nothing.
 * @throws StillhouseError as `buildTeacherCache` does before it writes
 */
export async function planBuild(settings: BuildSettings): Promise<BuildPlan> {
  const inputs = await openBuildInputs(settings);
  try {
    return describePlan(inputs);
  } finally {
    await inputs.close();
  }
}

export function describePlan({ out, teacher, description, summary, shards }: BuildInputs): BuildPlan {
  const labelPositions = shards.reduce((sum, { positions }) => sum + positions, 0);
  const size = estimateCacheSize(description, {
    rows: summary.rowCount,
    tokens: summary.tokenCount,
    positions: labelPositions,
    ...(teacher === null ? {} : { matrixDtype: teacher.matrixDtype }),
  });
  const growing = size.groups.filter(({ group, bytesPerPosition }) => group !== 'rows' && bytesPerPosition !== null);
  return {
    out,
    rows: summary.rowCount,
    tokens: summary.tokenCount,
    targetTokens: summary.targetCount,
    labelPositions,
    truncatedRows: summary.truncatedCount,
    longestRow: summary.longest!,
    shards: shards.length,
    size,
    bytesPerPosition:
      growing.length === 0 ? null : growing.reduce((sum, { bytesPerPosition }) => sum + bytesPerPosition!, 0),
  };
}
