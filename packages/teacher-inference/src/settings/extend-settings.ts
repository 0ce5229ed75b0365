import { StillhouseError } from '@stillhouse/errors';
import { boolean, type Field, resolveSettings, type SettingsOf, type SettingsTable, text } from '@stillhouse/settings';
import type { CacheDescription, TopKPolicy } from '@stillhouse/teacher-cache';
import { BUILD_SETTINGS, type BuildSettings } from './build-settings.ts';
import { resolveLabels } from './label-settings.ts';

/** The same settings without defaults: what is not given adds nothing. */
type LeftOpen<Table extends SettingsTable> = {
  readonly [Key in keyof Table]: Table[Key] extends Field<infer Value> ? Field<Value | undefined> : never;
};

function leaveOpen<Table extends SettingsTable>(table: Table): LeftOpen<Table> {
  const entries = Object.entries(table).map(([key, field]) => [key, { ...field, default: undefined }]);
  return Object.fromEntries(entries) as LeftOpen<Table>;
}

// An extended cache keeps these of the cache that it was.
const {
  out: _,
  positions: __,
  rowsPerShard: ___,
  maxLength: ____,
  dryRun: _____,
  partition: ______,
  ...addable
} = BUILD_SETTINGS;

/** Every setting of `stillhouse cache extend`. */
export const EXTEND_SETTINGS = {
  cache: text('folder of the cache', undefined),
  inPlace: boolean('extend the cache where it is; it stays valid until all is there'),
  out: text('folder for the extended cache, with links to the files that stay', undefined),
  ...leaveOpen(addable),
};

export type ExtendSettings = SettingsOf<typeof EXTEND_SETTINGS>;

/** The settings of a build that are given here, with defaults for the rest. */
export function asBuildSettings(settings: ExtendSettings, more: Partial<BuildSettings> = {}): BuildSettings {
  const given = Object.entries(settings).filter(([key, value]) => key in addable && value !== undefined);
  return resolveSettings(BUILD_SETTINGS, { ...Object.fromEntries(given), ...more });
}

/**
 * The labels of the extended cache: those it has and those asked for. A setting of a label asks for that label.
 * @throws StillhouseError LABELS_CONTRADICTORY
 */
export function extendLabels(had: CacheDescription['labels'], settings: ExtendSettings): CacheDescription['labels'] {
  const words = new Set(settings.labels);
  if (TOPK_KEYS.some((key) => settings[key] !== undefined)) words.add('topk');
  if (SAMPLED_KEYS.some((key) => settings[key] !== undefined)) words.add('sampled');
  if (settings.hiddenLayers !== undefined || namesHiddenForm(settings)) words.add('hidden');
  words.delete('none');
  if (words.size === 0) return had;
  const asked = resolveLabels(asBuildSettings(settings, { labels: [...words] }));
  return {
    ...had,
    topk: had.topk === null ? asked.topk : extendTopK(had.topk, asked.topk, settings),
    ...extendSampled(had, asked, settings),
    hidden: had.hidden === null ? asked.hidden : extendHidden(had.hidden, asked.hidden, settings),
    head: had.head || asked.head,
  };
}

/** Settings by which the ids and the form of top-k labels are chosen. */
const TOPK_KEYS = ['topK', 'topP', 'minK', 'maxK', 'pin', 'packing', 'logprobDtype', 'temperatures'] as const;
const SAMPLED_KEYS = ['draws', 'sampleTemperature', 'sampleSeed'] as const;

type HiddenPolicy = NonNullable<CacheDescription['labels']['hidden']>;

function extendTopK(had: TopKPolicy, asked: TopKPolicy | null, settings: ExtendSettings): TopKPolicy {
  if (asked === null) return had;
  requireSamePolicy(had, asked, settings);
  const added = settings.temperatures === undefined ? [] : asked.temperatures;
  return {
    ...had,
    k: settings.topK === undefined && settings.maxK === undefined ? had.k : Math.max(had.k, asked.k),
    temperatures: [...new Set([...had.temperatures, ...added])],
  };
}

/**
 * More ids and temperatures are all that can be had: what chooses the ids and how they are kept is one for all rows.
 */
function requireSamePolicy(had: TopKPolicy, asked: TopKPolicy, settings: ExtendSettings): void {
  const defaults = { packing: 'plain', logprobDtype: 'float32', topP: undefined, minK: undefined } as const;
  for (const key of ['packing', 'logprobDtype', 'topP', 'minK'] as const) {
    const [mine, theirs] = [had[key] ?? defaults[key], asked[key] ?? defaults[key]];
    if (settings[key] !== undefined && mine !== theirs) refuseChange(`topk.${key}`, mine, theirs);
  }
  if (settings.pin !== undefined)
    refuseChange('topk.pinnedIds', had.pinnedIds?.join(',') ?? 'none', settings.pin.join(','));
}

/** Sampled labels are drawn once. */
function extendSampled(
  { sampled: had = null }: CacheDescription['labels'],
  { sampled: asked = null }: CacheDescription['labels'],
  settings: ExtendSettings,
): Pick<CacheDescription['labels'], 'sampled'> {
  if (had === null) return asked === null ? {} : { sampled: asked };
  const isGiven = { draws: settings.draws, temperature: settings.sampleTemperature, seed: settings.sampleSeed };
  for (const key of ['draws', 'temperature', 'seed'] as const) {
    const mine = had[key] ?? 0;
    if (isGiven[key] !== undefined && isGiven[key] !== mine) refuseChange(`sampled.${key}`, mine, isGiven[key]);
  }
  return { sampled: had };
}

function refuseChange(key: string, have: string | number | undefined, asked: string | number | undefined): never {
  throw new StillhouseError({
    code: 'CACHE_EXTENSION_IMPOSSIBLE',
    where: 'cache extend',
    problem: `labels.${key} cannot change`,
    expected: String(have ?? 'none'),
    got: String(asked ?? 'none'),
    remedy: 'Build another cache',
  });
}

const namesHiddenForm = ({ hiddenDtype, hiddenBytes }: ExtendSettings) =>
  hiddenDtype !== undefined || hiddenBytes !== undefined;

/** Another form is handed on, to be refused: all layers have one. */
function extendHidden(had: HiddenPolicy, asked: HiddenPolicy | null, settings: ExtendSettings): HiddenPolicy {
  if (asked === null) return had;
  return { ...(namesHiddenForm(settings) ? asked : had), layers: [...new Set([...had.layers, ...asked.layers])] };
}
