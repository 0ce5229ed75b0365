import { canonicalJson, type JsonValue } from './canonical-json.ts';
import { type CacheDescription, type DataIdentity, type ShardGroup, shardGroups } from './description.ts';
import { listData, type RowRange } from './shard-layout.ts';
import { teacherSha256 } from './teacher-identity.ts';

/** Settings of the program that computed labels which are not in the description, such as device and batch size. */
export type ScoringSettings = Readonly<Record<string, string | number>>;

/** Who made one group for some rows, and from what. */
export interface GroupProvenance extends RowRange {
  readonly group: ShardGroup;
  readonly data: DataIdentity;
  /** sha256 of the weights or the file that computed the labels; null for `rows` and for a service. */
  readonly teacherSha256: string | null;
  readonly generator: { readonly name: string; readonly version: string };
  readonly settings: ScoringSettings;
}

/** The entries for one shard as a program has just made it. */
export function recordShard(
  description: CacheDescription,
  plannedRows: number,
  shard: RowRange & { readonly groups: readonly ShardGroup[] },
  made: { readonly generator: CacheDescription['generator']; readonly settings: ScoringSettings },
): readonly GroupProvenance[] {
  const source = listData(description, plannedRows).findLast(({ firstRow }) => firstRow <= shard.firstRow)!;
  return shard.groups.map((group) => ({
    group,
    firstRow: shard.firstRow,
    rowCount: shard.rowCount,
    data: source.data,
    teacherSha256: group === 'rows' ? null : teacherSha256(description.teacher!),
    generator: made.generator,
    settings: group === 'rows' ? {} : made.settings,
  }));
}

/** Entries in the order of groups and rows, neighbours that say the same joined: equal histories have equal lists. */
export function joinProvenance(
  entries: readonly GroupProvenance[],
  description: CacheDescription,
): readonly GroupProvenance[] {
  return shardGroups(description).flatMap((group) => {
    const joined: GroupProvenance[] = [];
    const ofGroup = entries.filter((entry) => entry.group === group).sort((a, b) => a.firstRow - b.firstRow);
    for (const entry of ofGroup) {
      const former = joined.at(-1);
      if (former !== undefined && former.firstRow + former.rowCount === entry.firstRow && isSame(former, entry)) {
        joined[joined.length - 1] = { ...former, rowCount: former.rowCount + entry.rowCount };
      } else {
        joined.push(inOrder(entry));
      }
    }
    return joined;
  });
}

const inOrder = ({ group, firstRow, rowCount, data, teacherSha256, generator, settings }: GroupProvenance) => ({
  group,
  firstRow,
  rowCount,
  data: { sha256: data.sha256, name: data.name, rowCount: data.rowCount },
  teacherSha256,
  generator: { name: generator.name, version: generator.version },
  settings: Object.fromEntries(Object.entries(settings).sort(([a], [b]) => (a < b ? -1 : 1))),
});

const isSame = (a: GroupProvenance, b: GroupProvenance) => {
  const content = ({ firstRow: _, rowCount: __, ...rest }: GroupProvenance) =>
    canonicalJson(rest as unknown as JsonValue);
  return content(a) === content(b);
};

/** What a cache of format version 1 implies: one program made all of it. */
export function impliedProvenance(description: CacheDescription, storedRows: number): readonly GroupProvenance[] {
  if (storedRows === 0) return [];
  const range = { firstRow: 0, rowCount: storedRows, groups: shardGroups(description) };
  return recordShard(description, storedRows, range, { generator: description.generator, settings: {} });
}
