import type { ModelConfig } from '@stillhouse/checkpoint';
import { checkModelTokenizer, describeOpenLabels, type LabelOptions } from '@stillhouse/objectives';
import type { HiddenLayer, HiddenScale, TeacherCache } from '@stillhouse/teacher-cache';
import { type ResolvedObjective, resolveObjective } from '../settings/objective-from-settings.ts';
import { checkFilter } from '../settings/row-filter.ts';
import { checkTaskWeights, parseTaskWeights } from '../settings/task-weights.ts';
import type { TrainingSettings } from '../settings/training-settings.ts';
import { type CacheShare, commonKind, haveOneCodebook, mixObjectives, parseCaches } from './cache-mixture.ts';
import { type OrderedSource, sumLengths } from './data-order.ts';
import type { StepSource, TrainingRows } from './step-data.ts';
import { selectRows } from './training-rows.ts';

/** A cache that a run learns from, opened, with its rows that take part. */
export interface TrainingSource {
  readonly location: string;
  readonly cache: TeacherCache;
  readonly rows: TrainingRows;
  /** Its tokens are to those of another cache as their weights are; as many as it has, where no weights are given. */
  readonly weight: number;
  /** Of the final hidden states. */
  readonly hiddenScale: HiddenScale | undefined;
  /** Of the layers whose states are matched. */
  readonly featureScales: ReadonlyMap<HiddenLayer, HiddenScale>;
}

export interface TrainingSources {
  readonly sources: readonly TrainingSource[];
  /** One for all of them. */
  readonly resolved: ResolvedObjective;
}

type SourceSettings = TrainingSettings & { readonly cache: string; readonly student: string };

export interface OpenCaches {
  readonly caches: readonly (CacheShare & { readonly cache: TeacherCache })[];
  close(): Promise<void>;
}

/** Opens the caches that the settings name, all or none. */
export async function openCaches(
  { cache, cacheWeights }: Pick<SourceSettings, 'cache' | 'cacheWeights'>,
  openCache: (location: string) => Promise<TeacherCache>,
): Promise<OpenCaches> {
  const opened: (CacheShare & { readonly cache: TeacherCache })[] = [];
  const close = async () => {
    for (const one of opened) await one.cache.close();
  };
  try {
    for (const share of parseCaches(cache, cacheWeights)) {
      opened.push({ ...share, cache: await openCache(share.location) });
    }
  } catch (error) {
    await close();
    throw error;
  }
  return { caches: opened, close };
}

/**
 * Holds caches against the settings, the student and each other, and chooses their rows.
 * @throws StillhouseError of each part, and CACHES_DIFFER
 */
export async function resolveSources(
  { caches }: Pick<OpenCaches, 'caches'>,
  settings: SourceSettings,
  config: ModelConfig,
): Promise<TrainingSources> {
  const described = await Promise.all(
    caches.map(async (one) => {
      const available = describeOpenLabels(one.cache);
      const hasFinal = available.labels.hidden?.layers.includes('final') === true;
      return { ...one, available, hiddenScale: hasFinal ? await one.cache.hiddenScale('final') : undefined };
    }),
  );
  // Codes of different codebooks are decoded, and meet the teacher's own output matrix.
  const isFolded = haveOneCodebook(described.map(({ cache }) => cache));
  const resolveWith = (labels: TrainingSettings['labels']) =>
    described.map((one) => ({
      ...one,
      ...resolveObjective({ ...settings, labels }, one.available, config, {
        where: one.location,
        hiddenScale: isFolded ? one.hiddenScale : undefined,
      }),
    }));
  const each = resolveWith(settings.labels);
  const resolved = mixObjectives(settings.labels === undefined ? resolveWith(commonKind(each)) : each);
  const [tasks, rowSources] = [new Set<string>(), new Set<string>()];
  const sources: TrainingSource[] = [];
  for (const { location, cache, weight, hiddenScale } of described) {
    await checkModelTokenizer(cache, settings.student);
    const {
      tasks: own,
      sources: ownSources,
      ...rows
    } = await selectRows(cache, config, { ...settings, cache: location });
    for (const task of own) tasks.add(task);
    for (const source of ownSources) rowSources.add(source);
    const featureScales = await readFeatureScales(cache, resolved);
    sources.push({ location, cache, rows, weight: weight ?? sumLengths(rows.lengths), hiddenScale, featureScales });
  }
  checkFilter(settings, { tasks, sources: rowSources }, settings.cache);
  if (settings.taskWeights !== undefined) {
    checkTaskWeights(parseTaskWeights(settings.taskWeights), tasks, settings.cache);
  }
  return { sources, resolved };
}

async function readFeatureScales(
  cache: TeacherCache,
  { objective: { features = [] } }: ResolvedObjective,
): Promise<ReadonlyMap<HiddenLayer, HiddenScale>> {
  const scales = new Map<HiddenLayer, HiddenScale>();
  for (const { teacher } of features) {
    const scale = await cache.hiddenScale(teacher);
    if (scale !== undefined) scales.set(teacher, scale);
  }
  return scales;
}

/** The digests of all caches, in their order, separated by commas: what a run learnt from. */
export const joinDigests = (sources: readonly Pick<TrainingSource, 'cache'>[]): string =>
  sources.map(({ cache }) => cache.digest).join(',');

export const orderSources = (sources: readonly TrainingSource[]): readonly OrderedSource[] =>
  sources.map(({ rows, weight }) => ({ lengths: rows.lengths, weight }));

/** What reads the steps of these sources: each gathers its labels with its own scales and grids. */
export function readSources(
  { sources, resolved }: TrainingSources,
  { temperature, taskWeights }: Pick<TrainingSettings, 'temperature' | 'taskWeights'>,
): readonly StepSource[] {
  return sources.map(({ location, cache, rows, hiddenScale, featureScales }): StepSource => {
    const { topk, sampled } = cache.description.labels;
    const labels: LabelOptions = {
      objective: resolved.objective,
      temperature,
      temperatures: topk?.temperatures ?? [],
      ...(sampled ? { sampledTemperature: sampled.temperature } : {}),
      vocabSize: resolved.vocabSize,
      float: 'float32',
      ...(hiddenScale === undefined ? {} : { hiddenScale }),
      featureScales,
      ...(taskWeights === undefined ? {} : { taskWeights: parseTaskWeights(taskWeights) }),
    };
    return { cache, rows, labels, ...(sources.length === 1 ? {} : { name: location }) };
  });
}

/** How a run uses one of its caches. */
export interface CacheUse {
  readonly location: string;
  readonly digest: string;
  /** Rows that take part, and their tokens. */
  readonly rows: number;
  readonly tokens: number;
  /** Its part of the tokens that are trained on. */
  readonly share: number;
  /** Passes over these rows so far. */
  readonly epochs: number;
}

/** @param epochs passes over each */
export function describeCaches(sources: readonly TrainingSource[], epochs: readonly number[]): readonly CacheUse[] {
  const total = sources.reduce((sum, { weight }) => sum + weight, 0);
  return sources.map(({ location, cache, rows, weight }, i) => ({
    location,
    digest: cache.digest,
    rows: rows.indices.length,
    tokens: sumLengths(rows.lengths),
    share: weight / total,
    epochs: epochs[i]!,
  }));
}
