import { StillhouseError } from '@stillhouse/errors';
import { resolveSettings } from '@stillhouse/settings';
import { TRAINING_SETTINGS, type TrainingSettings } from './training-settings.ts';

/** A part of a run with an objective, rows and a schedule of its own. */
export interface Stage {
  readonly name: string;
  /** All settings that hold in it, those of the run too. */
  readonly settings: TrainingSettings;
}

/** Settings of a run; with stages, those of the run alone count, and each stage brings the others. */
export type StagedSettings = TrainingSettings & { readonly stages?: readonly Stage[] };

/** Settings that hold for a run as a whole: no stage can have its own. */
export const RUN_SETTINGS = [
  'cache',
  'cacheWeights',
  'student',
  'out',
  'loraRank',
  'loraAlpha',
  'loraTargets',
  'checkpointEvery',
  'keepCheckpoints',
  'saveDtype',
  'device',
  'precision',
  'threads',
  'resume',
  'resumeStep',
  'tensorboard',
  'evalEvery',
  'evalCache',
  'evalSplit',
  'evalLimit',
] as const satisfies readonly (keyof TrainingSettings)[];

type GivenSettings = Readonly<Record<string, unknown>>;

function refuse(where: string, problem: string, expected: string, got: unknown): never {
  throw new StillhouseError({ code: 'STAGES_INVALID', where, problem, expected, got: JSON.stringify(got) });
}

/**
 * The stages of a recipe. A stage's settings go before those of the recipe, and flags, which hold in every stage,
 * before both.
 * @param given what the recipe has under `stages`
 * @param recipe its other settings
 * @param where the recipe file
 * @throws StillhouseError STAGES_INVALID, SETTING_NOT_FOR_STAGE, SETTING_UNKNOWN, SETTING_INVALID
 */
export function resolveStages(
  given: unknown,
  recipe: GivenSettings,
  flags: GivenSettings,
  where: string,
): readonly Stage[] {
  if (!Array.isArray(given) || given.length === 0) {
    return refuse(`${where}, key "stages"`, 'these are no stages', 'a list of objects, each with a name', given);
  }
  const names = new Set<string>();
  return given.map((one: unknown, i): Stage => {
    const place = `${where}, stage ${i + 1}`;
    if (typeof one !== 'object' || one === null || Array.isArray(one)) {
      return refuse(place, 'this is no stage', 'an object with a name and settings', one);
    }
    const { name, ...settings } = one as GivenSettings;
    if (typeof name !== 'string' || name.trim() === '') {
      return refuse(place, 'the stage has no name', '"name" with some text', name);
    }
    if (names.has(name)) refuse(place, 'another stage has this name', 'a name of its own', name);
    names.add(name);
    const keyPlace = (key: string) => `${place} (${name}), key ${JSON.stringify(key)}`;
    for (const key of RUN_SETTINGS) {
      if (settings[key] === undefined) continue;
      throw new StillhouseError({
        code: 'SETTING_NOT_FOR_STAGE',
        where: keyPlace(key),
        problem: 'the setting holds for the run as a whole',
        remedy: 'Give it beside "stages"',
      });
    }
    resolveSettings(TRAINING_SETTINGS, settings, keyPlace);
    return { name, settings: resolveSettings(TRAINING_SETTINGS, { ...recipe, ...settings, ...flags }, keyPlace) };
  });
}
