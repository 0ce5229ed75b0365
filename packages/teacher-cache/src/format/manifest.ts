import { createHash } from 'node:crypto';
import { canonicalJson, type JsonValue } from './canonical-json.ts';
import { type CacheDescription, type CacheGroup, hiddenGroup, type ShardGroup, shardGroups } from './description.ts';
import { attentionLayer, type HiddenLayer } from './hidden-layer.ts';
import { type GroupProvenance, joinProvenance } from './provenance.ts';
import { printTeacher } from './teacher-identity.ts';

export const MANIFEST_NAME = 'manifest.json';
export const FORMAT_NAME = 'stillhouse-teacher-cache';
/** Readers of version n read 1 to n; a change that an old reader would misread raises it. */
export const FORMAT_VERSION = 4;

/**
 * The lowest version that can say what a cache holds: 4 where the teacher is no folder of weights or a tail is unknown,
 * 3 where there are attention outputs. What older readers can read stays as it was.
 */
export function requiredVersion({ teacher, labels }: CacheDescription): number {
  if ((teacher !== null && teacher.kind !== 'weights') || labels.topk?.tail === 'unknown') return 4;
  return labels.hidden?.layers.some((layer) => attentionLayer(layer) !== undefined) === true ? 3 : 2;
}

export interface ListedFile {
  /** Relative to the cache, with `/`. */
  readonly path: string;
  readonly sizeBytes: number;
  readonly sha256: string;
}

export type MatrixDtype = 'bfloat16' | 'float16' | 'float32';

export interface ListedMatrix extends ListedFile {
  readonly dtype: MatrixDtype;
  readonly rows: number;
  readonly columns: number;
}

export type ShardFiles = { readonly rows: ListedFile } & { readonly [group in ShardGroup]?: ListedFile };

export interface ListedShard {
  readonly firstRow: number;
  readonly rowCount: number;
  /** Tokens and label positions of its rows. */
  readonly tokenCount: number;
  readonly positionCount: number;
  /** One file for each of {@link shardGroups}. */
  readonly files: ShardFiles;
}

export interface CacheManifest {
  readonly format: string;
  readonly version: number;
  /** sha256 of the canonical JSON of all other keys. */
  readonly digest: string;
  readonly complete: boolean;
  readonly rows: { readonly planned: number; readonly stored: number };
  readonly description: CacheDescription;
  readonly tokenizer: readonly ListedFile[];
  readonly outputMatrix: ListedMatrix | null;
  /** What decodes the states of a layer, where their dtype needs such a file. */
  readonly scales: readonly (ListedFile & { readonly layer: HiddenLayer })[];
  readonly shards: readonly ListedShard[];
  /** Who made which group for which rows; every stored row of every group once. */
  readonly provenance: readonly GroupProvenance[];
}

/** A manifest before it is sealed. */
export type ManifestBody = Omit<CacheManifest, 'digest' | 'format' | 'version'>;

export const OUTPUT_MATRIX_PATH = 'head/output_matrix.arrow';
/** @param revision counts how often the file of a group was replaced by one with more in it */
export const shardPath = (index: number, group: ShardGroup, revision = 0) =>
  `shards/${String(index).padStart(5, '0')}.${group}${revision === 0 ? '' : `.r${revision}`}.arrow`;
export const tokenizerPath = (name: string) => `tokenizer/${name}`;

/** sha256, in hexadecimal, over everything a manifest says; students' reports name it. */
export function digestManifest(manifest: object): string {
  const { digest: _, ...rest } = manifest as { digest?: unknown };
  return createHash('sha256')
    .update(canonicalJson(rest as JsonValue))
    .digest('hex');
}

/** The text of a manifest file; equal manifests have equal bytes. */
export function serialiseManifest(body: ManifestBody): string {
  return sealBody(FORMAT_NAME, {}, body);
}

/** The text of a file that says what a manifest says, under a name of its own and with more before it. */
export function sealBody(format: string, more: Readonly<Record<string, JsonValue>>, body: ManifestBody): string {
  const { complete, rows, description, tokenizer, outputMatrix, scales, shards, provenance } = body;
  const groups = shardGroups(description);
  const rest = {
    ...more,
    complete,
    rows: { planned: rows.planned, stored: rows.stored },
    description: { ...description, teacher: description.teacher && printTeacher(description.teacher) },
    tokenizer: [...tokenizer].sort((a, b) => (a.path < b.path ? -1 : 1)),
    outputMatrix,
    scales: groups.flatMap((group) => scales.filter(({ layer }) => hiddenGroup(layer) === group)),
    shards: [...shards]
      .sort((a, b) => a.firstRow - b.firstRow)
      .map((shard) => ({
        firstRow: shard.firstRow,
        rowCount: shard.rowCount,
        tokenCount: shard.tokenCount,
        positionCount: shard.positionCount,
        files: Object.fromEntries(groups.map((group) => [group, shard.files[group]])),
      })),
    provenance: joinProvenance(provenance, description),
  };
  const head = { format, version: requiredVersion(description) };
  return `${JSON.stringify({ ...head, digest: digestManifest({ ...head, ...rest }), ...rest }, null, 1)}\n`;
}

/** Every file a manifest lists, with the group it belongs to. */
export function* listFiles(
  manifest: ManifestBody,
): Generator<{ readonly group: CacheGroup; readonly file: ListedFile }> {
  for (const file of manifest.tokenizer) yield { group: 'tokenizer', file };
  if (manifest.outputMatrix !== null) yield { group: 'head', file: manifest.outputMatrix };
  for (const file of manifest.scales) yield { group: hiddenGroup(file.layer), file };
  for (const shard of manifest.shards) {
    for (const group of shardGroups(manifest.description)) yield { group, file: shard.files[group]! };
  }
}
