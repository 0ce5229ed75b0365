import { totalmem } from 'node:os';
import { openCacheAt } from '@stillhouse/cache-remote';
import {
  assertFinite,
  describeParameters,
  type ModelConfig,
  openModelWeights,
  readModelConfig,
  type TensorSource,
} from '@stillhouse/checkpoint';
import { StillhouseError } from '@stillhouse/errors';
import { checkModelTokenizer, describeOpenLabels, featureName } from '@stillhouse/objectives';
import { requireSetting } from '@stillhouse/settings';
import type { HiddenScale, TeacherCache } from '@stillhouse/teacher-cache';
import { measureActivations } from './activation-store.ts';
import { type BackwardPlan, planBackward } from './backward-plan.ts';
import { type HeldOutPlan, resolveHeldOut } from './held-out.ts';
import { type Learning, resolveLearning } from './learning.ts';
import { type ResolvedObjective, resolveObjective } from './objective-from-settings.ts';
import type { TrainingRows } from './step-data.ts';
import { selectRows } from './training-rows.ts';
import type { TrainingSettings } from './training-settings.ts';

/** Settings with the paths that a run cannot do without. */
type RunSettings = TrainingSettings & { readonly cache: string; readonly student: string; readonly out: string };

function requirePaths(settings: TrainingSettings): RunSettings {
  for (const key of ['cache', 'student', 'out'] as const) requireSetting(settings, key, 'DIR');
  return settings as RunSettings;
}

/** What a run learns from and starts from, opened and found fit for each other. */
export interface TrainingInputs {
  readonly settings: ResolvedSettings;
  readonly cache: TeacherCache;
  readonly config: ModelConfig;
  readonly weights: TensorSource;
  readonly learning: Learning;
  readonly rows: TrainingRows;
  readonly resolved: ResolvedObjective;
  /** Of the final hidden states. */
  readonly hiddenScale: HiddenScale | undefined;
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
 * @throws StillhouseError of each part, and SETTING_MISSING, NO_TRAINING_ROWS, ROW_TOO_LONG
 */
export async function openTrainingInputs(
  given: TrainingSettings,
  { openCache = openCacheAt, finiteStudents = new Set() }: SharedInputs = {},
): Promise<TrainingInputs> {
  const settings = requirePaths(given);
  requireResume(settings);
  const heldOut = resolveHeldOut(settings);
  const cache = await openCache(settings.cache);
  let weights: TensorSource | undefined;
  const close = async () => {
    await weights?.close();
    await cache.close();
  };
  try {
    const config = await readModelConfig(settings.student);
    weights = await openModelWeights(settings.student, config);
    const available = describeOpenLabels(cache);
    const hasFinal = available.labels.hidden?.layers.includes('final') === true;
    const hiddenScale = hasFinal ? await cache.hiddenScale('final') : undefined;
    const resolved = resolveObjective(settings, available, config, settings.cache, hiddenScale);
    const learning = resolveLearning(settings, config);
    await checkModelTokenizer(cache, settings.student);
    if (!finiteStudents.has(settings.student)) {
      for (const { name } of describeParameters(config)) {
        assertFinite(name, await weights.readFloat32(name), weights.tensors.get(name)!.file);
      }
      finiteStudents.add(settings.student);
    }
    const rows = await selectRows(cache, config, settings);
    const resolvedSettings = resolveOpen(
      settings,
      resolved,
      rows,
      planBackward(config, learning.trained, learning.adapter),
      config,
    );
    return {
      settings: resolvedSettings,
      cache,
      config,
      weights,
      learning,
      rows,
      resolved,
      hiddenScale,
      heldOut,
      close,
    };
  } catch (error) {
    await close();
    throw error;
  }
}

/** What a check of a run's settings has found. */
export interface TrainingCheck {
  readonly cacheDigest: string;
  readonly rows: number;
  readonly steps: number;
}

/**
 * Checks a run as `trainStudent` does before its first step, and does nothing; its folder is not looked at.
 * @throws StillhouseError as {@link openTrainingInputs}
 */
export async function checkTraining(settings: TrainingSettings, shared: SharedInputs = {}): Promise<TrainingCheck> {
  const inputs = await openTrainingInputs(settings, shared);
  try {
    const { cache, rows } = inputs;
    return { cacheDigest: cache.digest, rows: rows.indices.length, steps: inputs.settings.steps };
  } finally {
    await inputs.close();
  }
}

export type ResolvedSettings = RunSettings & {
  readonly steps: number;
  readonly labels: 'full' | 'topk' | 'sampled' | 'none';
  readonly refine: 'always' | 'never';
  readonly recompute: 'always' | 'never';
};

/** Share of the machine's memory that activations may take before `auto` computes them again instead. */
const ACTIVATIONS_SHARE = 0.25;

/** Settings that were left open, by what the data and the machine are: the recipe that is written has none. */
function resolveOpen(
  settings: RunSettings,
  { objective }: ResolvedObjective,
  rows: TrainingRows,
  backward: BackwardPlan,
  config: ModelConfig,
): ResolvedSettings {
  const tokens = rows.lengths.reduce((sum, length) => sum + length, 0);
  return {
    ...settings,
    labels: objective.labels.kind,
    refine: isRefined(objective) ? 'always' : 'never',
    jsBeta: objective.divergence.kind === 'jensen-shannon' ? objective.divergence.beta : undefined,
    skew: objective.divergence.kind === 'skew-kl' ? objective.divergence.skew : undefined,
    hiddenLayers: nameLayers(objective),
    steps: settings.steps ?? Math.max(1, Math.round(tokens / settings.batchTokens)),
    recompute: settings.recompute === 'auto' ? chooseRecompute(settings, rows, backward, config) : settings.recompute,
  };
}

/** The pairs that are matched, where they are not those that are matched without being named. */
function nameLayers({ features = [] }: ResolvedObjective['objective']): readonly string[] | undefined {
  const names = features.map(featureName);
  return names.length === 0 || names.join() === 'final:final' ? undefined : names;
}

const isRefined = ({ labels }: ResolvedObjective['objective']) =>
  labels.kind === 'full' && labels.refinement !== undefined;

function chooseRecompute(
  { batchTokens, accumulate, batching }: RunSettings,
  rows: TrainingRows,
  backward: BackwardPlan,
  config: ModelConfig,
): 'always' | 'never' {
  const longest = rows.lengths.reduce((most, length) => Math.max(most, length), 1);
  const mean = rows.lengths.reduce((sum, length) => sum + length, 0) / rows.lengths.length;
  const rowCount = Math.ceil(batchTokens / accumulate / (batching === 'packed' ? longest : mean)) + 1;
  return measureActivations(config, backward, rowCount, longest) > ACTIVATIONS_SHARE * totalmem() ? 'always' : 'never';
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
