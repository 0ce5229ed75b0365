import { boolean, type Field, resolveSettings, type SettingsOf, type SettingsTable, text } from '@stillhouse/settings';
import type { CacheDescription } from '@stillhouse/teacher-cache';
import { resolveLabels } from './build-inputs.ts';
import { BUILD_SETTINGS, type BuildSettings } from './build-settings.ts';

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
  if (settings.topK !== undefined || settings.temperatures !== undefined) words.add('topk');
  if (settings.hiddenLayers !== undefined || namesHiddenForm(settings)) words.add('hidden');
  words.delete('none');
  if (words.size === 0) return had;
  const asked = resolveLabels(asBuildSettings(settings, { labels: [...words] }));
  return {
    ...had,
    topk: had.topk === null ? asked.topk : extendTopK(had.topk, asked.topk, settings),
    hidden: had.hidden === null ? asked.hidden : extendHidden(had.hidden, asked.hidden, settings),
    head: had.head || asked.head,
  };
}

type TopKPolicy = NonNullable<CacheDescription['labels']['topk']>;
type HiddenPolicy = NonNullable<CacheDescription['labels']['hidden']>;

function extendTopK(had: TopKPolicy, asked: TopKPolicy | null, settings: ExtendSettings): TopKPolicy {
  if (asked === null) return had;
  const added = settings.temperatures === undefined ? [] : asked.temperatures;
  return {
    ...had,
    k: settings.topK === undefined ? had.k : Math.max(had.k, asked.k),
    temperatures: [...new Set([...had.temperatures, ...added])],
  };
}

const namesHiddenForm = ({ hiddenDtype, hiddenBytes }: ExtendSettings) =>
  hiddenDtype !== undefined || hiddenBytes !== undefined;

/** Another form is handed on, to be refused: all layers have one. */
function extendHidden(had: HiddenPolicy, asked: HiddenPolicy | null, settings: ExtendSettings): HiddenPolicy {
  if (asked === null) return had;
  return { ...(namesHiddenForm(settings) ? asked : had), layers: [...new Set([...had.layers, ...asked.layers])] };
}
