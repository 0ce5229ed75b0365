import type { ModelConfig } from '@stillhouse/checkpoint';
import { StillhouseError } from '@stillhouse/errors';
import {
  describeFullLabels,
  type Objective,
  resolveRefinement,
  type SoftLabels,
  sharedVocabulary,
} from '@stillhouse/objectives';
import {
  type CacheDescription,
  type HiddenScale,
  keepsWholeVocabulary,
  largestTopKCount,
} from '@stillhouse/teacher-cache';
import type { TrainingSettings } from './training-settings.ts';

export interface ResolvedObjective {
  readonly objective: Objective;
  /** Rows of the student's output matrix that take part: all of them, or the ids that both sides really have. */
  readonly vocabSize: number;
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
 * @param hiddenScale of the final hidden states
 * @throws StillhouseError LABELS_NOT_IN_CACHE, TEMPERATURE_NOT_IN_GRID, TEMPERATURE_NOT_DRAWN, REFINEMENT_NOT_IN_CACHE,
 *   SETTING_NOT_FOR_LABELS, HIDDEN_NOT_IN_CACHE, PROJECTION_NEEDED, VOCABULARY_MISMATCH
 */
export function resolveObjective(
  settings: TrainingSettings,
  cache: CacheDescription,
  student: ModelConfig,
  where: string,
  hiddenScale?: HiddenScale,
): ResolvedObjective {
  const vocabSize = sharedVocabulary(cache, student.vocabSize, where);
  const labels = resolveLabels(settings, cache, vocabSize, where, hiddenScale);
  const divergence = { kind: 'forward-kl' } as const;
  if (settings.hiddenWeight === 0) return { objective: { labels, divergence }, vocabSize };
  if (!cache.labels.hidden?.layers.includes('final') || cache.teacher === null) {
    refuse('HIDDEN_NOT_IN_CACHE', '--hidden-weight', `the cache ${where} holds no final hidden states`, {
      remedy: 'Build the cache with --labels hidden, or leave --hidden-weight at 0',
    });
  }
  const teacherHidden = cache.teacher.hiddenSize;
  const sameWidth = teacherHidden === student.hiddenSize;
  if (settings.projection === 'none' && !sameWidth) {
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
  const hasProjection = settings.projection === 'linear' || (settings.projection === 'auto' && !sameWidth);
  return {
    objective: { labels, divergence, hidden: { loss: settings.hiddenLoss, teacherHidden, hasProjection } },
    vocabSize,
  };
}

function resolveLabels(
  settings: TrainingSettings,
  cache: CacheDescription,
  vocabSize: number,
  where: string,
  hiddenScale: HiddenScale | undefined,
): SoftLabels {
  const { topk, sampled = null, hidden, head } = cache.labels;
  const hasFull = head && hidden?.layers.includes('final') === true;
  const has = [
    ...(hasFull ? ['full'] : []),
    ...(topk === null ? [] : ['topk']),
    ...(sampled === null ? [] : ['sampled']),
    'none',
  ];
  const kind = settings.labels ?? has.find((one) => one !== 'none');
  if (kind === undefined || !has.includes(kind)) {
    refuse(
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
  const { temperature, tail, refine } = settings;
  if (refine === 'always' && kind !== 'full') {
    refuse('SETTING_NOT_FOR_LABELS', '--refine always', `${kind} labels have nothing to refine`, {
      expected: '--labels full',
      got: kind,
      remedy: 'Leave --refine out, or train on full labels',
    });
  }
  if (kind === 'none') return { kind: 'none' };
  if (kind === 'full') {
    const refinement = resolveRefinement(refine, cache, temperature, where);
    const full = describeFullLabels(cache, hiddenScale);
    return refinement === undefined ? full : { ...full, refinement };
  }
  if (kind === 'sampled') {
    if (temperature !== sampled!.temperature) {
      refuse(
        'TEMPERATURE_NOT_DRAWN',
        `--temperature ${temperature}`,
        `the labels of the cache ${where} were drawn at another temperature`,
        {
          expected: String(sampled!.temperature),
          got: String(temperature),
          remedy: `Use --temperature ${sampled!.temperature}, or extend the cache with draws at ${temperature}`,
        },
      );
    }
    return { kind: 'sampled' };
  }
  if (tail === 'tail' && !topk!.temperatures.includes(temperature)) {
    refuse(
      'TEMPERATURE_NOT_IN_GRID',
      `--temperature ${temperature}`,
      `the cache ${where} knows the exact tail at other temperatures only`,
      {
        expected: `one of ${topk!.temperatures.join(', ')}`,
        got: String(temperature),
        remedy: `Use --tail bucket, or build the cache with --temperatures ${[...topk!.temperatures, temperature].sort((a, b) => a - b).join(',')}`,
      },
    );
  }
  const k = largestTopKCount(topk!, cache.teacher!.vocabSize);
  return {
    kind: 'topk',
    k,
    tail,
    isWhole: topk!.k === vocabSize && keepsWholeVocabulary(topk!, cache.teacher!.vocabSize),
  };
}
