import type { ModelConfig } from '@stillhouse/checkpoint';
import { StillhouseError } from '@stillhouse/errors';
import {
  type Divergence,
  describeFullLabels,
  explainUnsoundDivergence,
  type FeatureMatch,
  type Objective,
  resolveRefinement,
  type SoftLabels,
  sharedVocabulary,
} from '@stillhouse/objectives';
import { flagOf } from '@stillhouse/settings';
import {
  type CacheDescription,
  type HiddenScale,
  keepsWholeVocabulary,
  largestTopKCount,
} from '@stillhouse/teacher-cache';
import { resolveLayerPairs } from './layer-pairs.ts';
import { changesTemperature, checkLossSchedule } from './loss-schedule.ts';
import type { TrainingSettings } from './training-settings.ts';

export interface ResolvedObjective {
  readonly objective: Objective;
  /** Rows of the student's output matrix that take part: all of them, or the ids that both sides really have. */
  readonly vocabSize: number;
}

/** A cache in messages, and what its final hidden states are decoded with. */
interface CachePlace {
  readonly where: string;
  readonly hiddenScale?: HiddenScale | undefined;
}

function refuse(
  code: string,
  where: string,
  problem: string,
  more: { expected?: string; got?: string; remedy: string },
): never {
  throw new StillhouseError({ code, where, problem, ...more });
}

/**
 * What the settings ask for, held against what the cache has and what the student is.
 * @param cache with the labels that are there
 * @throws StillhouseError LABELS_NOT_IN_CACHE, TAIL_UNKNOWN, TEMPERATURE_NOT_IN_GRID, TEMPERATURE_NOT_DRAWN,
 *   REFINEMENT_NOT_IN_CACHE, SETTING_NOT_FOR_LABELS, SETTING_UNUSED, DIVERGENCE_NOT_FOR_LABELS,
 *   TEMPERATURE_SCHEDULE_NOT_FOR_LABELS, HIDDEN_NOT_IN_CACHE, LAYER_OUT_OF_RANGE, PROJECTION_NEEDED,
 *   VOCABULARY_MISMATCH
 */
export function resolveObjective(
  settings: TrainingSettings,
  cache: CacheDescription,
  student: ModelConfig,
  place: CachePlace,
): ResolvedObjective {
  const { where } = place;
  const vocabSize = sharedVocabulary(cache, student.vocabSize, where);
  checkLossSchedule(settings);
  if (settings.featuresOnly) refuseOutputSettings(settings);
  const given = settings.featuresOnly ? { ...settings, labels: 'none' as const } : settings;
  const labels = resolveLabels(given, cache, vocabSize, place);
  const divergence = resolveDivergence(given, labels);
  const features = resolveFeatures(settings, cache, student, where);
  const objective: Objective = { labels, divergence, ...(features.length === 0 ? {} : { features }) };
  return { objective: settings.featuresOnly ? { ...objective, isFeaturesOnly: true } : objective, vocabSize };
}

/** Without the output matrix there is no distribution to compare, nor to choose tokens by. */
function refuseOutputSettings({ labels, selectTokens, hiddenWeight, attentionWeight }: TrainingSettings): void {
  const unused = [
    ...(labels === undefined || labels === 'none' ? [] : [`--labels ${labels}`]),
    ...(selectTokens === 1 ? [] : [`--select-tokens ${selectTokens}`]),
  ];
  if (unused.length > 0) {
    refuse('SETTING_UNUSED', unused[0]!, 'with --features-only the output distribution takes no part', {
      remedy: 'Leave it out, or leave --features-only out',
    });
  }
  if (hiddenWeight === 0 && attentionWeight === 0) {
    refuse('SETTING_MISSING', '--features-only', 'no states are matched', {
      remedy: 'Give --hidden-weight or --attention-weight',
    });
  }
}

const STATES = [
  { states: 'hidden', weight: 'hiddenWeight', layers: 'hiddenLayers' },
  { states: 'attention', weight: 'attentionWeight', layers: 'attentionLayers' },
] as const;

function resolveFeatures(
  settings: TrainingSettings,
  cache: CacheDescription,
  student: ModelConfig,
  where: string,
): readonly FeatureMatch[] {
  const { hiddenLoss, hiddenNormalise, projection } = settings;
  for (const { weight, layers } of STATES) {
    if (settings[weight] > 0 || settings[layers] === undefined) continue;
    refuse('SETTING_UNUSED', flagOf(layers), 'these states are not matched', {
      expected: `${flagOf(weight)} above 0`,
      got: '0',
      remedy: `Give ${flagOf(weight)}, or leave it out`,
    });
  }
  const matched = STATES.filter(({ weight }) => settings[weight] > 0);
  if (matched.length === 0) {
    if (hiddenNormalise === 'none') return [];
    refuse('SETTING_UNUSED', '--hidden-normalise', 'no states are matched', {
      expected: '--hidden-weight or --attention-weight above 0',
      got: '0',
      remedy: 'Leave it out',
    });
  }
  if (hiddenLoss === 'cosine' && hiddenNormalise === 'rms') {
    refuse('SETTING_UNUSED', '--hidden-normalise rms', 'the cosine does not depend on the size of either side', {
      expected: '--hidden-loss mse, or --hidden-normalise none or layer',
      got: '--hidden-loss cosine',
      remedy: 'Leave it out',
    });
  }
  const { teacher } = cache;
  const pairs = matched.flatMap(({ states, layers }) =>
    resolveLayerPairs(states, settings[layers] ?? ['last'], {
      stored: teacher === null ? [] : (cache.labels.hidden?.layers ?? []),
      teacherLayers: teacher?.layerCount ?? 0,
      studentLayers: student.layerCount,
      where,
    }),
  );
  const teacherHidden = teacher!.hiddenSize!;
  const sameWidth = teacherHidden === student.hiddenSize;
  if (projection === 'none' && !sameWidth) {
    refuse(
      'PROJECTION_NEEDED',
      '--projection none',
      'hidden states of different widths cannot be compared without a projection',
      {
        expected: `a teacher of width ${student.hiddenSize}`,
        got: String(teacherHidden),
        remedy: 'Use --projection auto',
      },
    );
  }
  const hasProjection = projection === 'linear' || (projection === 'auto' && !sameWidth);
  const form = { loss: hiddenLoss, normalisation: hiddenNormalise, teacherHidden, hasProjection };
  return pairs.map((pair) => ({ ...pair, ...form }));
}

/** Parameters of a divergence that leaves them out. */
const [DEFAULT_JS_BETA, DEFAULT_SKEW] = [0.5, 0.1];

function resolveDivergence(settings: TrainingSettings, labels: SoftLabels): Divergence {
  const { divergence: name, jsBeta, skew } = settings;
  const refuseUnused = (where: string, only: string): never =>
    refuse('SETTING_UNUSED', where, 'nothing reads it', { expected: only, got: name, remedy: 'Leave it out' });
  if (jsBeta !== undefined && name !== 'js') refuseUnused('--js-beta', '--divergence js');
  if (skew !== undefined && name !== 'skew-kl') refuseUnused('--skew', '--divergence skew-kl');
  if (labels.kind === 'none') {
    const unused = [
      ...(name === 'forward-kl' ? [] : [`--divergence ${name}`]),
      ...(settings.schedule === 'constant' ? [] : [`--schedule ${settings.schedule}`]),
    ];
    if (unused.length > 0) {
      refuse('SETTING_UNUSED', unused[0]!, 'without soft labels there is no divergence', {
        expected: '--labels full, topk or sampled',
        got: 'none',
        remedy: 'Leave it out, or train on soft labels',
      });
    }
  }
  const divergence = makeDivergence(name, jsBeta ?? DEFAULT_JS_BETA, skew ?? DEFAULT_SKEW);
  const reason = explainUnsoundDivergence(divergence, labels);
  if (reason !== undefined) {
    const got = labels.kind === 'topk' ? `${labels.kind} with --tail ${labels.tail}` : labels.kind;
    refuse('DIVERGENCE_NOT_FOR_LABELS', `--divergence ${name}`, reason, {
      expected: 'full labels, or topk with --tail tail or bucket',
      got,
      remedy: 'Use --divergence forward-kl, or other labels',
    });
  }
  return divergence;
}

function makeDivergence(name: TrainingSettings['divergence'], beta: number, skew: number): Divergence {
  switch (name) {
    case 'forward-kl':
    case 'reverse-kl':
      return { kind: name };
    case 'js':
      return { kind: 'jensen-shannon', beta };
    case 'skew-kl':
      return { kind: 'skew-kl', skew };
    case 'tv':
      return { kind: 'total-variation' };
  }
}

/** Where log_z or draws are of given temperatures, T must stay. */
function refuseTemperatureSchedule({ schedule, temperature, temperatureEnd }: TrainingSettings, got: string): never {
  refuse('TEMPERATURE_SCHEDULE_NOT_FOR_LABELS', `--schedule ${schedule}`, 'these labels are of single temperatures', {
    expected: `T = ${temperature} throughout, or full labels, or topk labels with --tail bucket or renormalise`,
    got: `${got} labels with T from ${temperature} to ${temperatureEnd}`,
    remedy: 'Leave --temperature-end out, or choose other labels',
  });
}

function resolveLabels(
  settings: TrainingSettings,
  cache: CacheDescription,
  vocabSize: number,
  place: CachePlace,
): SoftLabels {
  const { where, hiddenScale } = place;
  const kind = chooseLabels(settings, cache, where);
  const { temperature, refine } = settings;
  if (refine === 'always' && kind !== 'full') {
    refuse('SETTING_NOT_FOR_LABELS', '--refine always', `${kind} labels have nothing to refine`, {
      expected: '--labels full',
      got: kind,
      remedy: 'Leave --refine out, or train on full labels',
    });
  }
  switch (kind) {
    case 'none':
      return { kind };
    case 'full': {
      const only = changesTemperature(settings) ? undefined : temperature;
      const refinement = resolveRefinement(refine, cache, only, where);
      const full = describeFullLabels(cache, hiddenScale);
      return refinement === undefined ? full : { ...full, refinement };
    }
    case 'sampled':
      checkDraws(settings, cache, where);
      return { kind };
    case 'topk':
      return resolveTopK(settings, cache, vocabSize, where);
  }
}

/** The labels asked for, or the best that the cache has. */
function chooseLabels(settings: TrainingSettings, cache: CacheDescription, where: string): SoftLabels['kind'] {
  const { topk, sampled = null, hidden, head } = cache.labels;
  const hasFull = head && hidden?.layers.includes('final') === true;
  const has: readonly SoftLabels['kind'][] = [
    ...(hasFull ? (['full'] as const) : []),
    ...(topk === null ? [] : (['topk'] as const)),
    ...(sampled === null ? [] : (['sampled'] as const)),
    'none',
  ];
  const kind = settings.labels ?? has.find((one) => one !== 'none');
  if (kind !== undefined && has.includes(kind)) return kind;
  return refuse(
    'LABELS_NOT_IN_CACHE',
    kind === undefined ? '--labels' : `--labels ${kind}`,
    `the cache ${where} holds no such labels`,
    {
      expected: has.join(' or '),
      got: kind ?? 'nothing asked for and no soft labels to take',
      remedy: 'Choose labels that the cache has, pull their groups, or build a cache that has them',
    },
  );
}

function checkDraws(settings: TrainingSettings, cache: CacheDescription, where: string): void {
  const { temperature } = settings;
  const drawnAt = cache.labels.sampled!.temperature;
  if (temperature !== drawnAt) {
    refuse(
      'TEMPERATURE_NOT_DRAWN',
      `--temperature ${temperature}`,
      `the labels of the cache ${where} were drawn at another temperature`,
      {
        expected: String(drawnAt),
        got: String(temperature),
        remedy: `Use --temperature ${drawnAt}, or extend the cache with draws at ${temperature}`,
      },
    );
  }
  if (changesTemperature(settings)) refuseTemperatureSchedule(settings, 'sampled');
}

function resolveTopK(
  settings: TrainingSettings,
  cache: CacheDescription,
  vocabSize: number,
  where: string,
): SoftLabels {
  const topk = cache.labels.topk!;
  const { tail } = settings;
  if (tail === 'tail') checkTail(settings, topk, where);
  const k = largestTopKCount(topk, cache.teacher!.vocabSize);
  const isWhole = topk.k === vocabSize && keepsWholeVocabulary(topk, cache.teacher!.vocabSize);
  return { kind: 'topk', k, tail, isWhole };
}

/** Whether the cache knows the mass outside its top k at the temperature of every step. */
function checkTail(settings: TrainingSettings, topk: NonNullable<CacheDescription['labels']['topk']>, where: string) {
  const { temperature } = settings;
  if (topk.tail === 'unknown') {
    refuse('TAIL_UNKNOWN', '--tail tail', `the cache ${where} has the teacher's best ids and nothing of the rest`, {
      expected: '--tail bucket or renormalise',
      got: 'tail',
      remedy: 'Use --tail bucket: one entry for what the stored ids leave at T = 1',
    });
  }
  if (!topk.temperatures.includes(temperature)) {
    refuse(
      'TEMPERATURE_NOT_IN_GRID',
      `--temperature ${temperature}`,
      `the cache ${where} knows the exact tail at other temperatures only`,
      {
        expected: `one of ${topk.temperatures.join(', ')}`,
        got: String(temperature),
        remedy:
          'Use --tail bucket, or build the cache with --temperatures ' +
          `${[...topk.temperatures, temperature].sort((a, b) => a - b).join(',')}`,
      },
    );
  }
  if (changesTemperature(settings)) refuseTemperatureSchedule(settings, 'topk');
}
