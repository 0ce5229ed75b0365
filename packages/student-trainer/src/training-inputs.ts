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
import { requireSetting } from '@stillhouse/settings';
import type { TeacherCache } from '@stillhouse/teacher-cache';
import { measureActivations } from './activation-store.ts';
import { checkOptimiserState } from './adamw.ts';
import { type BackwardPlan, planBackward } from './backward-plan.ts';
import { countSteps, sumLengths } from './data-order.ts';
import { type HeldOutPlan, resolveHeldOut } from './held-out.ts';
import { namePair, type PairedStates, statesOf } from './layer-pairs.ts';
import { type Learning, resolveLearning } from './learning.ts';
import type { ResolvedObjective } from './objective-from-settings.ts';
import type { TrainingSettings } from './training-settings.ts';
import {
  joinDigests,
  openCaches,
  orderSources,
  resolveSources,
  type TrainingSource,
  type TrainingSources,
} from './training-sources.ts';

/** Settings with the paths that a run cannot do without. */
type RunSettings = TrainingSettings & { readonly cache: string; readonly student: string; readonly out: string };

function requirePaths(settings: TrainingSettings): RunSettings {
  for (const key of ['cache', 'student', 'out'] as const) requireSetting(settings, key, 'DIR');
  return settings as RunSettings;
}

/** What a run learns from and starts from, opened and found fit for each other. */
export interface TrainingInputs extends TrainingSources {
  readonly settings: ResolvedSettings;
  readonly config: ModelConfig;
  readonly weights: TensorSource;
  readonly learning: Learning;
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
  given: TrainingSettings,
  { openCache = openCacheAt, finiteStudents = new Set() }: SharedInputs = {},
): Promise<TrainingInputs> {
  const settings = requirePaths(given);
  requireResume(settings);
  refuseStepsAndEpochs(settings);
  checkOptimiserState(settings, settings.device);
  const heldOut = resolveHeldOut(settings);
  const opened = await openCaches(settings, openCache);
  let weights: TensorSource | undefined;
  const close = async () => {
    await weights?.close();
    await opened.close();
  };
  try {
    const config = await readModelConfig(settings.student);
    weights = await openModelWeights(settings.student, config);
    const learning = resolveLearning(settings, config);
    const { sources, resolved } = await resolveSources(opened, settings, config);
    if (!finiteStudents.has(settings.student)) {
      for (const { name } of describeParameters(config)) {
        assertFinite(name, await weights.readFloat32(name), weights.tensors.get(name)!.file);
      }
      finiteStudents.add(settings.student);
    }
    const resolvedSettings = resolveOpen(
      settings,
      { sources, resolved },
      planBackward(config, learning.trained, learning.adapter, resolved.objective.features),
      config,
    );
    return {
      settings: resolvedSettings,
      sources,
      resolved,
      config,
      weights,
      learning,
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
    const rows = inputs.sources.reduce((sum, source) => sum + source.rows.indices.length, 0);
    return { cacheDigest: joinDigests(inputs.sources), rows, steps: inputs.settings.steps };
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
  { sources, resolved: { objective } }: TrainingSources,
  backward: BackwardPlan,
  config: ModelConfig,
): ResolvedSettings {
  const { seed, batchTokens, epochs = 1 } = settings;
  return {
    ...settings,
    labels: objective.labels.kind,
    refine: isRefined(objective) ? 'always' : 'never',
    jsBeta: objective.divergence.kind === 'jensen-shannon' ? objective.divergence.beta : undefined,
    skew: objective.divergence.kind === 'skew-kl' ? objective.divergence.skew : undefined,
    hiddenLayers: namePairs(objective, 'hidden', settings.hiddenLayers),
    attentionLayers: namePairs(objective, 'attention', settings.attentionLayers),
    steps: settings.steps ?? countSteps(orderSources(sources), seed, batchTokens, epochs),
    epochs: undefined,
    recompute:
      settings.recompute === 'auto' ? chooseRecompute(settings, sources, backward, config) : settings.recompute,
  };
}

/** The pairs that are matched, by number; `last` need not be named. */
function namePairs(
  { features = [] }: ResolvedObjective['objective'],
  states: PairedStates,
  given: readonly string[] | undefined,
): readonly string[] | undefined {
  if (given === undefined || given.join() === 'last') return undefined;
  return features.filter((match) => statesOf(match) === states).map(namePair);
}

const isRefined = ({ labels }: ResolvedObjective['objective']) =>
  labels.kind === 'full' && labels.refinement !== undefined;

function chooseRecompute(
  { batchTokens, accumulate, batching }: RunSettings,
  sources: readonly TrainingSource[],
  backward: BackwardPlan,
  config: ModelConfig,
): 'always' | 'never' {
  const longest = Math.max(
    ...sources.map(({ rows }) => rows.lengths.reduce((most, length) => Math.max(most, length), 1)),
  );
  const mean = Math.min(...sources.map(({ rows }) => sumLengths(rows.lengths) / rows.lengths.length));
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

function refuseStepsAndEpochs({ steps, epochs }: TrainingSettings): void {
  if (steps === undefined || epochs === undefined) return;
  throw new StillhouseError({
    code: 'SETTING_CONFLICT',
    where: '--epochs',
    problem: 'the number of steps is given too, and only one of both can hold',
    got: `--steps ${steps} and --epochs ${epochs}`,
    remedy: 'Leave one of them out',
  });
}
