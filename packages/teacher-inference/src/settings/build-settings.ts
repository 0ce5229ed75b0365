import { boolean, choice, integer, list, number, type SettingsOf, text } from '@stillhouse/settings';
import { type HiddenLayer, isHiddenLayer, MOST_DRAWS } from '@stillhouse/teacher-cache';

export type LabelWord = 'topk' | 'sampled' | 'hidden' | 'none';

const LABEL_WORDS: readonly unknown[] = ['topk', 'sampled', 'hidden', 'none'];

/** Every setting of a cache build: recipe keys and, in kebab case, flags of `stillhouse cache build`. */
export const BUILD_SETTINGS = {
  teacher: text('model folder of the teacher; labels none needs none', undefined),
  data: text('JSON-lines file of rows', undefined),
  out: text('folder for the cache', undefined),
  labels: list(
    'what is stored of the teacher: topk, sampled, hidden, or none for rows alone',
    (value): value is LabelWord => LABEL_WORDS.includes(value),
    'topk, sampled, hidden or none',
    ['topk', 'hidden'],
  ),
  tokenizer: text("folder with the tokenizer; left out: the teacher's", undefined),
  topK: integer('most probable ids stored at each label position; left out: 64, or by --top-p', undefined, { min: 1 }),
  topP: number('store the fewest ids that hold this much of the probability, and the target', undefined, {
    above: 0,
    max: 1 - 2 ** -20,
  }),
  minK: integer('with --top-p: at least so many ids; left out: 8', undefined, { min: 1 }),
  maxK: integer('with --top-p: at most so many ids; left out: 128', undefined, { min: 1 }),
  pin: list(
    'tokens or ids stored at every position: auto (with --top-p those that end a sequence, a turn, the ' +
      'thinking), none, or a list',
    (value): value is string | number =>
      (typeof value === 'string' && value !== '') || (Number.isSafeInteger(value) && (value as number) >= 0),
    'auto, none, tokens or ids',
    ['auto'],
  ),
  packing: choice('how top-k labels are stored: zstd, or plain lists', ['zstd', 'plain'], 'zstd'),
  logprobDtype: choice('how packed logprobs are stored: f32 is lossless', ['f32', 'f16', 'u16', 'u8'], 'f32'),
  draws: integer('with labels sampled: ids drawn at each position; left out: 50', undefined, {
    min: 1,
    max: MOST_DRAWS,
  }),
  sampleTemperature: number('temperature of the distribution that is drawn from; left out: 1', undefined, {
    min: 0.01,
    max: 1000,
  }),
  sampleSeed: integer('another number draws other ids; left out: 0', undefined, { min: 0, max: 2 ** 53 - 1 }),
  temperatures: list(
    'temperatures at which the mass outside the top k is exact',
    (value): value is number => typeof value === 'number' && value >= 0.01 && value <= 1000,
    'numbers above 0, from 0.01 to 1000',
    [1, 2, 4],
  ),
  positions: choice(
    'where labels are stored: before tokens to be predicted, or everywhere',
    ['response', 'all'],
    'response',
  ),
  hiddenLayers: list(
    'states: final is what enters the output matrix, n the residual stream after layer n, 0 the embeddings, ' +
      'attention.n the attention output of layer n from 1',
    isHiddenLayer,
    'final, layer numbers or attention.n',
    ['final'] as readonly HiddenLayer[],
  ),
  hiddenDtype: choice(
    'how hidden states are stored: coded takes --hidden-bytes a position, int8 one a channel',
    ['int8', 'int8-groups', 'coded', 'f16', 'f32'],
    'int8',
  ),
  hiddenBytes: integer('for --hidden-dtype coded: bytes of a position, for each layer', undefined, { min: 1 }),
  maxLength: integer('rows are cut to so many tokens', undefined, { min: 2 }),
  limit: integer('only so many rows, from the first', undefined, { min: 1 }),
  dryRun: boolean('say what would be built, and build nothing'),
  device: choice('where to compute', ['auto', 'cpu', 'cuda', 'webgpu'], 'auto'),
  rowsPerShard: integer('rows of a shard; they are scored together, and a killed build loses at most one shard', 64, {
    min: 1,
    max: 65_536,
  }),
  partition: text(
    'only part i of n, as 2/4, into a folder that all parts share; left out: as the Slurm array or Kubernetes job says',
    undefined,
  ),
  batchTokens: integer('tokens that go through a layer together; bounds the working memory', 1024, { min: 1 }),
  threads: integer('CPU threads; left out: all', undefined, { min: 1 }),
} as const;

export type BuildSettings = SettingsOf<typeof BUILD_SETTINGS>;
