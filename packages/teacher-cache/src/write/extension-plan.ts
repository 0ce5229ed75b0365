import { StillhouseError } from '@stillhouse/errors';
import { canonicalJson, type JsonValue } from '../format/canonical-json.ts';
import { type CacheDescription, diffDescriptions, type ShardGroup, shardGroups } from '../format/description.ts';
import type { HiddenLayer } from '../format/hidden-layer.ts';
import { type CacheManifest, shardPath } from '../format/manifest.ts';
import { readRevision } from '../format/manifest-parser.ts';
import type { TeacherCache } from '../read/cache-reader.ts';
import { listTasks, type ShardTask } from './shard-tasks.ts';

/** What of an extended cache is written and what stays. */
export interface ExtensionPlan {
  readonly all: readonly ShardTask[];
  readonly tasks: readonly ShardTask[];
  /** Shards that stay as they are. */
  readonly untouched: CacheManifest['shards'];
  /** The groups that shards of the cache as it was get. */
  readonly groups: readonly ShardGroup[];
}

export function planExtension(
  { manifest, rowIds }: TeacherCache,
  description: CacheDescription,
  totalRows: number,
  isInPlace: boolean,
): ExtensionPlan {
  const had = shardGroups(manifest.description);
  const isTopKNew =
    canonicalJson(description.labels.topk as unknown as JsonValue) !==
    canonicalJson(manifest.description.labels.topk as unknown as JsonValue);
  const groups = shardGroups(description).filter((group) => !had.includes(group) || (group === 'topk' && isTopKNew));
  const all = listTasks(description, totalRows);
  const formerTasks = manifest.shards.map((former, index): ShardTask => {
    const { firstRow, rowCount } = former;
    const pathOf = (group: ShardGroup) => {
      const replaced = isInPlace ? former.files[group] : undefined;
      return shardPath(index, group, replaced === undefined ? 0 : readRevision(replaced.path) + 1);
    };
    return {
      index,
      firstRow,
      rowCount,
      groups,
      pathOf,
      former,
      formerIds: rowIds.slice(firstRow, firstRow + rowCount),
    };
  });
  return {
    all,
    tasks: [...(groups.length === 0 ? [] : formerTasks), ...all.slice(manifest.shards.length)],
    untouched: groups.length === 0 ? manifest.shards : [],
    groups,
  };
}

/** More of the same teacher's labels, and more rows, are all that an extension can bring. */
export function requireExtension(
  { description: had, rows }: CacheManifest,
  asked: CacheDescription,
  totalRows: number,
): void {
  const refuse = (problem: string, expected: string, got: string): never => {
    throw new StillhouseError({
      code: 'CACHE_EXTENSION_IMPOSSIBLE',
      where: 'cache extend',
      problem,
      expected,
      got,
      remedy: 'Build another cache',
    });
  };
  const fixed = ({ furtherData: _, labels: __, teacher, ...rest }: CacheDescription) => ({
    ...rest,
    ...(had.teacher === null ? {} : { teacher }),
  });
  const differences = diffDescriptions(fixed(had), fixed(asked));
  if (differences.length > 0) {
    refuse(
      'these cannot change',
      differences.map(({ key, have }) => `${key} ${have}`).join(', '),
      differences.map((one) => `${one.key} ${one.asked}`).join(', '),
    );
  }
  const data = had.furtherData ?? [];
  const further = asked.furtherData ?? [];
  const print = (value: unknown) => canonicalJson(value as JsonValue);
  if (print(further.slice(0, data.length)) !== print(data)) refuse('data goes missing', print(data), print(further));
  const added = further.slice(data.length).reduce((sum, { rowCount }) => sum + rowCount, 0);
  if (totalRows !== rows.planned + added) refuse('the rows do not add up', `${rows.planned + added}`, `${totalRows}`);
  const { topk, sampled = null, hidden, head } = had.labels;
  if (sampled !== null && print(sampled) !== print(asked.labels.sampled ?? null)) {
    refuse('sampled labels would change', print(sampled), print(asked.labels.sampled ?? null));
  }
  if ((topk !== null && asked.labels.topk === null) || (head && !asked.labels.head)) {
    refuse('labels go missing', print(had.labels), print(asked.labels));
  }
  if (hidden === null) return;
  const { layers, ...kind } = hidden;
  const { layers: askedLayers, ...askedKind } = asked.labels.hidden ?? { layers: [] as readonly HiddenLayer[] };
  if (print(kind) !== print(askedKind) || layers.some((layer) => !askedLayers.includes(layer))) {
    refuse('hidden states would change', print(hidden), print(asked.labels.hidden));
  }
}
