import { isAdapterName, type ModelConfig } from '@stillhouse/checkpoint';
import { LINEAR_NAMES } from '@stillhouse/decoder';
import { StillhouseError } from '@stillhouse/errors';
import { resolveTrainLayers, trainedNames } from '../settings/train-layers.ts';
import type { TrainingSettings } from '../settings/training-settings.ts';
import type { StudentAdapter } from '../step/adapters.ts';

/** What learns in a run. */
export interface Learning {
  /** Whether a parameter learns, by its full name. */
  readonly trained: (name: string) => boolean;
  /** Adapters, where they are what learns. */
  readonly adapter: StudentAdapter | undefined;
}

type LearningSettings = Pick<TrainingSettings, 'trainLayers' | 'loraRank' | 'loraAlpha' | 'loraTargets'>;

/**
 * What `trainLayers` and `loraRank` together let learn: with adapters nothing else, and they in these layers only.
 * @throws StillhouseError TRAIN_LAYERS_INVALID, TRAIN_LAYERS_NOT_FOR_LORA, SETTING_UNUSED
 */
export function resolveLearning(settings: LearningSettings, config: ModelConfig): Learning {
  const { trainLayers, loraRank: rank, loraAlpha, loraTargets } = settings;
  const trained = resolveTrainLayers(trainLayers, config);
  if (rank === undefined) {
    const unused = loraAlpha !== undefined ? '--lora-alpha' : loraTargets !== undefined ? '--lora-targets' : undefined;
    if (unused === undefined) return { trained: trainedNames(trained), adapter: undefined };
    throw new StillhouseError({
      code: 'SETTING_UNUSED',
      where: unused,
      problem: 'there are no adapters without --lora-rank',
      remedy: 'Give --lora-rank N, or leave it out',
    });
  }
  const isAll = trainLayers.includes('all');
  if (!isAll && trained.parts.size > 0) {
    throw new StillhouseError({
      code: 'TRAIN_LAYERS_NOT_FOR_LORA',
      where: '--train-layers',
      problem: 'adapters are of linear layers; embedding, norm and head have none and stay as they are',
      expected: 'layers only',
      got: trainLayers.join(','),
      remedy: `Leave ${[...trained.parts].join(' and ')} out, or train without --lora-rank`,
    });
  }
  const alpha = loraAlpha ?? rank;
  return {
    trained: isAdapterName,
    adapter: { rank, alpha, scale: alpha / rank, targets: loraTargets ?? LINEAR_NAMES, layers: trained.layers },
  };
}
