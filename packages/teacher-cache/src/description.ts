import { StillhouseError } from '@stillhouse/errors';
import { canonicalJson, type JsonValue } from './canonical-json.ts';

/** `final` is the state that enters the output matrix (after the final norm); n is the residual stream after layer n, 0 the embeddings. */
export type HiddenLayer = 'final' | number;
export type HiddenDtype = 'int8' | 'float16' | 'float32';
export type LabelPositions = 'response' | 'all';

export interface TeacherIdentity {
  readonly name: string;
  readonly architecture: string;
  readonly weightsSha256: string;
  readonly configSha256: string;
  readonly hiddenSize: number;
  readonly layerCount: number;
  /** Rows of the output matrix, padding included. */
  readonly vocabSize: number;
}

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
    /** `k` is the largest count at a position; `temperatures` the grid of `log_z`. */
    readonly topk: { readonly k: number; readonly temperatures: readonly number[] } | null;
    readonly hidden: { readonly layers: readonly HiddenLayer[]; readonly dtype: HiddenDtype } | null;
    /** Whether the teacher's output matrix is kept, which makes `full` labels possible. */
    readonly head: boolean;
  };
  readonly positions: LabelPositions;
  readonly rowsPerShard: number;
  readonly generator: { readonly name: string; readonly version: string };
}

/** A set of files that can be fetched alone. */
export type CacheGroup = 'rows' | 'topk' | `hidden-${string}` | 'head' | 'tokenizer';
export type ShardGroup = 'rows' | 'topk' | `hidden-${string}`;

export const hiddenGroup = (layer: HiddenLayer): ShardGroup => `hidden-${layer}`;

/** The groups every shard of such a cache has, `rows` first. */
export function shardGroups(description: CacheDescription): readonly ShardGroup[] {
  const { topk, hidden } = description.labels;
  return ['rows', ...(topk === null ? [] : ['topk' as const]), ...(hidden?.layers ?? []).map(hiddenGroup)];
}

const byLayer = (a: HiddenLayer, b: HiddenLayer) => (a === 'final' ? -1 : a) - (b === 'final' ? -1 : b);

function refuse(problem: string, expected?: string, got?: string): never {
  throw new StillhouseError({
    code: 'CACHE_DESCRIPTION_INVALID',
    where: 'cache description',
    problem,
    ...(expected === undefined ? {} : { expected }),
    ...(got === undefined ? {} : { got }),
  });
}

function requireCount(name: string, value: number, least: number): void {
  if (!Number.isSafeInteger(value) || value < least) {
    refuse(`${name} is not a possible number`, `a whole number of at least ${least}`, String(value));
  }
}

/**
 * A copy with every key in its fixed order, layers sorted (`final` first), nothing else.
 * @throws StillhouseError CACHE_DESCRIPTION_INVALID, TOP_K_LARGER_THAN_VOCABULARY
 */
export function normaliseDescription(description: CacheDescription): CacheDescription {
  const { teacher, tokenizer, data, labels, positions, generator } = description;
  const { topk, hidden, head } = labels;
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
  if (teacher === null && (topk !== null || hidden !== null || head)) refuse('there are labels but no teacher');
  if (teacher !== null) {
    requireCount('teacher.hiddenSize', teacher.hiddenSize, 1);
    requireCount('teacher.layerCount', teacher.layerCount, 1);
    requireCount('teacher.vocabSize', teacher.vocabSize, 1);
    if (topk !== null) requireTopK(topk, teacher.vocabSize);
    if (hidden !== null) requireHidden(hidden, teacher.layerCount);
  }
  return {
    teacher: teacher && {
      name: teacher.name,
      architecture: teacher.architecture,
      weightsSha256: teacher.weightsSha256,
      configSha256: teacher.configSha256,
      hiddenSize: teacher.hiddenSize,
      layerCount: teacher.layerCount,
      vocabSize: teacher.vocabSize,
    },
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
      topk: topk && { k: topk.k, temperatures: [...topk.temperatures] },
      hidden: hidden && { layers: [...hidden.layers].sort(byLayer), dtype: hidden.dtype },
      head,
    },
    positions,
    rowsPerShard: description.rowsPerShard,
    generator: { name: generator.name, version: generator.version },
  };
}

function requireTopK(topk: NonNullable<CacheDescription['labels']['topk']>, vocabSize: number): void {
  requireCount('labels.topk.k', topk.k, 1);
  if (topk.k > vocabSize) {
    throw new StillhouseError({
      code: 'TOP_K_LARGER_THAN_VOCABULARY',
      where: 'labels.topk.k',
      problem: 'the teacher has fewer ids than that',
      expected: `at most ${vocabSize}`,
      got: String(topk.k),
    });
  }
  const { temperatures } = topk;
  if (temperatures.length === 0) refuse('labels.topk.temperatures is empty', 'at least one temperature, such as 1');
  for (const temperature of temperatures) {
    if (!(temperature >= 0.01 && temperature <= 1000)) {
      refuse('a temperature is out of range', '0.01 to 1000', String(temperature));
    }
  }
  if (new Set(temperatures).size !== temperatures.length) refuse('a temperature is named twice');
}

function requireHidden(hidden: NonNullable<CacheDescription['labels']['hidden']>, layerCount: number): void {
  if (hidden.layers.length === 0) refuse('labels.hidden.layers is empty', 'final or layer numbers');
  for (const layer of hidden.layers) {
    if (layer !== 'final' && !(Number.isSafeInteger(layer) && layer >= 0 && layer <= layerCount)) {
      refuse('the teacher has no such layer', `final or 0 to ${layerCount}`, String(layer));
    }
  }
  if (new Set(hidden.layers).size !== hidden.layers.length) refuse('a layer is named twice');
  if (!['int8', 'float16', 'float32'].includes(hidden.dtype)) {
    refuse('labels.hidden.dtype is unknown', 'int8, float16 or float32', String(hidden.dtype));
  }
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
