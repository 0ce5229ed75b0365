import { choice, integer, list, type SettingsOf, text } from '@stillhouse/settings';

const isTemperature = (value: unknown): value is number =>
  typeof value === 'number' && value > 0 && Number.isFinite(value);

/** Every setting of an evaluation: recipe keys and, in kebab case, flags of `stillhouse eval`. */
export const EVALUATION_SETTINGS = {
  model: text('model folder to evaluate', undefined),
  task: choice(
    'kd: against a teacher cache; exact-match: greedy answers to questions',
    ['kd', 'exact-match'],
    undefined,
  ),
  cache: text('kd: the teacher cache to hold the model against', undefined),
  data: text('exact-match: JSON lines of questions with final answers', undefined),
  refine: choice(
    'kd: full labels with the head from exact top-k: auto does so where hidden states are stored in a lossy dtype',
    ['auto', 'always', 'never'],
    'auto',
  ),
  split: text('kd: only rows of this split; left out: all rows', undefined),
  limit: integer('only the first so many rows or questions', undefined, { min: 1 }),
  out: text('file for the result, JSON', undefined),
  temperatures: list('kd: softmax temperatures of the KL', isTemperature, 'numbers above 0, such as 1,2', [1, 2]),
  maxNewTokens: integer('exact-match: longest answer in tokens', 512, { min: 1 }),
  batchSize: integer('rows or questions computed together', 8, { min: 1 }),
  chunkPositions: integer('kd: label positions whose logits are in memory at a time', 128, { min: 1 }),
  device: choice('where to compute', ['auto', 'cpu', 'cuda', 'webgpu'], 'auto'),
  threads: integer('CPU threads; left out: all', undefined, { min: 1 }),
} as const;

export type EvaluationSettings = SettingsOf<typeof EVALUATION_SETTINGS>;
