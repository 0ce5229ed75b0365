import { canonicalJson, type JsonValue } from './canonical-json.ts';
import { refuseDescription as refuse, requireWholeNumber as requireCount } from './description-error.ts';
import { compareLayers, type HiddenLayer, hasLayer, isHiddenLayer, nameLayers } from './hidden-layer.ts';
import { normaliseSampled, normaliseTopK, type SampledPolicy, type TopKPolicy } from './label-policy.ts';
import { normaliseTeacher, type TeacherIdentity } from './teacher-identity.ts';

/**
 * - `int8`: one RMS a channel times one scale a position;
 * - `int8-groups`: one float16 scale for each 64 channels of a position;
 * - `coded`: transform-coded, see `HiddenCodebook`.
 */
export type HiddenDtype = 'int8' | 'int8-groups' | 'coded' | 'float16' | 'float32';
/** Channels that share a scale in `int8-groups`. */
export const GROUP_CHANNELS = 64;
export type LabelPositions = 'response' | 'all';

export interface TokenizerIdentity {
  /** A digest of what the ids mean, made by whoever made the cache. */
  readonly digest: string;
  /** Ids the tokenizer can emit: its largest id + 1. */
  readonly realVocabSize: number;
  readonly chatTemplateSha256: string | null;
}

/** A data file, by its content. */
export interface DataIdentity {
  readonly sha256: string;
  readonly name: string;
  /** Its rows that are used. */
  readonly rowCount: number;
}

/** Everything that decides the bytes of a cache. Two builds of equal description have equal bytes. */
export interface CacheDescription {
  readonly teacher: TeacherIdentity | null;
  readonly tokenizer: TokenizerIdentity | null;
  readonly data: DataIdentity;
  /** Rows are cut (or refused, as the builder decides) above so many tokens. */
  readonly maxLength: number | null;
  /** Only so many rows of the data are used. */
  readonly limit: number | null;
  /** Data whose rows were added later, in that order; left out where there is none. */
  readonly furtherData?: readonly (DataIdentity & { readonly limit: number | null })[];
  readonly labels: {
    readonly topk: TopKPolicy | null;
    /** Left out where nothing is sampled. */
    readonly sampled?: SampledPolicy | null;
    readonly hidden: {
      readonly layers: readonly HiddenLayer[];
      readonly dtype: HiddenDtype;
      /** For `coded`, and left out for others: the bytes a position is to take, for each layer. */
      readonly codedBytes?: number;
    } | null;
    /** Whether the teacher's output matrix is kept, which makes `full` labels possible. */
    readonly head: boolean;
  };
  readonly positions: LabelPositions;
  readonly rowsPerShard: number;
  readonly generator: { readonly name: string; readonly version: string };
}

/** A set of files that can be fetched alone. */
export type CacheGroup = ShardGroup | 'head' | 'tokenizer';
export type ShardGroup = 'rows' | 'topk' | 'sampled' | `hidden-${string}`;
/** What the file of a shard group holds. */
export type ShardContent = 'rows' | 'topk' | 'sampled' | HiddenLayer;

export const hiddenGroup = (layer: HiddenLayer): ShardGroup => `hidden-${layer}`;
export const contentGroup = (content: ShardContent): ShardGroup =>
  content === 'rows' || content === 'topk' || content === 'sampled' ? content : hiddenGroup(content);

/** The groups every shard of such a cache has, `rows` first. */
export function shardGroups(description: CacheDescription): readonly ShardGroup[] {
  const { topk, sampled = null, hidden } = description.labels;
  const contents: ShardContent[] = ['rows'];
  if (topk !== null) contents.push('topk');
  if (sampled !== null) contents.push('sampled');
  return [...contents, ...(hidden?.layers ?? [])].map(contentGroup);
}

/**
 * A copy with every key in its fixed order, layers sorted (`final` first, attention outputs last), nothing else.
 * @throws StillhouseError CACHE_DESCRIPTION_INVALID, TOP_K_LARGER_THAN_VOCABULARY
 */
export function normaliseDescription(description: CacheDescription): CacheDescription {
  const { teacher, tokenizer, data, labels, positions, generator } = description;
  const { topk, sampled = null, hidden, head } = labels;
  requireCount('data.rowCount', data.rowCount, 0);
  requireCount('rowsPerShard', description.rowsPerShard, 1);
  for (const key of ['maxLength', 'limit'] as const) {
    const value = description[key];
    if (value !== null) requireCount(key, value, 1);
  }
  for (const { rowCount, limit } of description.furtherData ?? []) {
    requireCount('furtherData.rowCount', rowCount, 1);
    if (limit !== null) requireCount('furtherData.limit', limit, 1);
  }
  if (positions !== 'response' && positions !== 'all') refuse('positions is unknown', 'response or all', positions);
  if (tokenizer !== null) requireCount('tokenizer.realVocabSize', tokenizer.realVocabSize, 1);
  if (teacher === null && (topk !== null || sampled !== null || hidden !== null || head))
    refuse('there are labels but no teacher');
  if (teacher !== null && head) requireHiddenSize(teacher);
  if (teacher !== null && hidden !== null) requireHidden(hidden, teacher);
  return {
    teacher: teacher && normaliseTeacher(teacher),
    tokenizer: tokenizer && {
      digest: tokenizer.digest,
      realVocabSize: tokenizer.realVocabSize,
      chatTemplateSha256: tokenizer.chatTemplateSha256,
    },
    data: { sha256: data.sha256, name: data.name, rowCount: data.rowCount },
    maxLength: description.maxLength,
    limit: description.limit,
    ...((description.furtherData ?? []).length === 0
      ? {}
      : {
          furtherData: description.furtherData!.map(({ sha256, name, rowCount, limit }) => ({
            sha256,
            name,
            rowCount,
            limit,
          })),
        }),
    labels: {
      topk: topk && normaliseTopK(topk, teacher!.vocabSize),
      ...(sampled === null ? {} : { sampled: normaliseSampled(sampled) }),
      hidden: hidden && {
        layers: [...hidden.layers].sort(compareLayers),
        dtype: hidden.dtype,
        ...(hidden.codedBytes === undefined ? {} : { codedBytes: hidden.codedBytes }),
      },
      head,
    },
    positions,
    rowsPerShard: description.rowsPerShard,
    generator: { name: generator.name, version: generator.version },
  };
}

function requireHiddenSize({ kind, hiddenSize }: TeacherIdentity): number {
  return hiddenSize ?? refuse('there are states or an output matrix of unknown width', 'teacher.hiddenSize', kind);
}

function requireHidden(hidden: NonNullable<CacheDescription['labels']['hidden']>, teacher: TeacherIdentity): void {
  const hiddenSize = requireHiddenSize(teacher);
  const layerCount = teacher.layerCount ?? refuse('the teacher has layers of unknown number', 'teacher.layerCount');
  if (hidden.layers.length === 0) refuse('labels.hidden.layers is empty', 'final or layer numbers');
  for (const layer of hidden.layers) {
    if (!isHiddenLayer(layer) || !hasLayer(layerCount, layer)) {
      refuse('the teacher has no such layer', nameLayers(layerCount), String(layer));
    }
  }
  if (new Set(hidden.layers).size !== hidden.layers.length) refuse('a layer is named twice');
  if (!['int8', 'int8-groups', 'coded', 'float16', 'float32'].includes(hidden.dtype)) {
    refuse('labels.hidden.dtype is unknown', 'int8, int8-groups, coded, float16 or float32', String(hidden.dtype));
  }
  if (hidden.dtype === 'int8-groups' && hiddenSize % GROUP_CHANNELS !== 0) {
    refuse(
      'int8-groups needs whole groups of channels',
      `a hidden size that ${GROUP_CHANNELS} divides`,
      String(hiddenSize),
    );
  }
  if ((hidden.dtype === 'coded') !== (hidden.codedBytes !== undefined)) {
    refuse('labels.hidden.codedBytes goes with coded, and coded with it');
  }
  if (hidden.codedBytes !== undefined) requireCount('labels.hidden.codedBytes', hidden.codedBytes, 1);
}

/** One leaf in which two descriptions differ; `undefined` where a side lacks it. */
export interface DescriptionDifference {
  readonly key: string;
  readonly have: string;
  readonly asked: string;
}

/** What differs between the description of a cache and the one asked for, by dotted key. */
export function diffDescriptions(have: object, asked: object): readonly DescriptionDifference[] {
  const left = leaves(have as JsonValue);
  const right = leaves(asked as JsonValue);
  return [...new Set([...left.keys(), ...right.keys()])]
    .filter((key) => left.get(key) !== right.get(key))
    .map((key) => ({ key, have: left.get(key) ?? 'nothing', asked: right.get(key) ?? 'nothing' }));
}

function leaves(value: JsonValue, key = '', into = new Map<string, string>()): Map<string, string> {
  if (value !== null && typeof value === 'object' && !Array.isArray(value)) {
    for (const [name, child] of Object.entries(value)) leaves(child, key === '' ? name : `${key}.${name}`, into);
  } else {
    into.set(key, canonicalJson(value));
  }
  return into;
}
