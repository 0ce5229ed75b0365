import { openCacheAt } from '@stillhouse/cache-remote';
import { type ModelConfig, type ModelWeights, openModelWeights, readModelConfig } from '@stillhouse/checkpoint';
import { StillhouseError } from '@stillhouse/errors';
import { requireSetting } from '@stillhouse/settings';
import type { TeacherCache } from '@stillhouse/teacher-cache';
import { joinDigests, openCaches } from '../data/training-sources.ts';
import type { StagedSettings } from '../settings/stage-settings.ts';
import type { TrainingSettings } from '../settings/training-settings.ts';
import { type HeldOutPlan, resolveHeldOut } from '../watch/held-out.ts';
import { countAllSteps, planStages, type RunSettings, type StagePlan } from './stage-plan.ts';

function requirePaths(settings: TrainingSettings): RunSettings {
  for (const key of ['cache', 'student', 'out'] as const) requireSetting(settings, key, 'DIR');
  return settings as RunSettings;
}

/** What a run learns from and starts from, opened and found fit for each other. */
export interface TrainingInputs {
  /** Of the run; what a stage may have of its own is in its plan. */
  readonly settings: RunSettings;
  /** At least one. */
  readonly stages: readonly StagePlan[];
  readonly config: ModelConfig;
  readonly weights: ModelWeights;
  readonly heldOut: HeldOutPlan | undefined;
  close(): Promise<void>;
}

/** What many runs of one process need to find out only once. */
export interface SharedInputs {
  /** Opens a cache by its folder or address; each run closes what it is given. */
  readonly openCache?: (location: string) => Promise<TeacherCache>;
  /** Student folders whose weights are known to be finite; those that are found to be so are added. */
  readonly finiteStudents?: Set<string>;
}

/**
 * Opens what a run needs and checks everything that could be wrong with it, short of its folder.
 * @throws StillhouseError of each part, and SETTING_MISSING, SETTING_CONFLICT, NO_TRAINING_ROWS, ROW_TOO_LONG
 */
export async function openTrainingInputs(
  given: StagedSettings,
  { openCache = openCacheAt, finiteStudents = new Set() }: SharedInputs = {},
): Promise<TrainingInputs> {
  const settings = requirePaths(given);
  requireResume(settings);
  const [firstStage = { settings }] = given.stages ?? [];
  const heldOut = resolveHeldOut({ ...settings, split: firstStage.settings.split });
  const opened = await openCaches(settings, openCache);
  let weights: ModelWeights | undefined;
  const close = async () => {
    await weights?.close();
    await opened.close();
  };
  try {
    const config = await readModelConfig(settings.student);
    weights = await openModelWeights(settings.student, config);
    const stages = await planStages(settings, given.stages, opened, config);
    if (finiteStudents.has(settings.student)) weights.assumeFinite();
    else await weights.checkFinite();
    finiteStudents.add(settings.student);
    return { settings, stages, config, weights, heldOut, close };
  } catch (error) {
    await close();
    throw error;
  }
}

/** What a check of a run's settings has found. */
export interface TrainingCheck {
  readonly cacheDigest: string;
  /** Of the first stage, where there are several. */
  readonly rows: number;
  readonly steps: number;
}

/**
 * Checks a run as `trainStudent` does before its first step, and does nothing; its folder is not looked at.
 * @throws StillhouseError as {@link openTrainingInputs}
 */
export async function checkTraining(settings: StagedSettings, shared: SharedInputs = {}): Promise<TrainingCheck> {
  const inputs = await openTrainingInputs(settings, shared);
  try {
    const { stages } = inputs;
    const { sources } = stages[0]!;
    const rows = sources.reduce((sum, source) => sum + source.rows.indices.length, 0);
    return { cacheDigest: joinDigests(sources), rows, steps: countAllSteps(stages) };
  } finally {
    await inputs.close();
  }
}

function requireResume({ resume, resumeStep }: TrainingSettings): void {
  if (resumeStep === undefined || resume) return;
  throw new StillhouseError({
    code: 'SETTING_MISSING',
    where: '--resume',
    problem: '--resume-step needs it',
    remedy: 'Give --resume too, or leave --resume-step out',
  });
}
