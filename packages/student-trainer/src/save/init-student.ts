import { join } from 'node:path';
import {
  countParameters,
  describeParameters,
  isNormWeight,
  type ModelConfig,
  parseModelConfig,
  readModelConfig,
  writeModelFolder,
} from '@stillhouse/checkpoint';
import { pathExists } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import { seededNormals } from '@stillhouse/seeded-random';
import { integer, number, type SettingsOf, text } from '@stillhouse/settings';
import { countElements } from '@stillhouse/tensor-types';

/** Settings of `stillhouse init-student`. Sizes that are not given are those of `like`, or scaled by `scale`. */
export const INIT_SETTINGS = {
  like: text('model folder whose architecture, tokenizer and unnamed sizes to take', undefined),
  out: text('folder for the new student', undefined),
  scale: number('share of the parameters of `like` to aim at, by depth and width together', undefined, {
    above: 0,
    max: 4,
  }),
  layers: integer('layers', undefined, { min: 1 }),
  hidden: integer('hidden size', undefined, { min: 2 }),
  heads: integer('query heads', undefined, { min: 1 }),
  kvHeads: integer('key-value heads', undefined, { min: 1 }),
  intermediate: integer('width of the feed-forward part', undefined, { min: 1 }),
  seed: integer('seed of the weights', 0, { min: 0, max: 0xffffffff }),
} as const;

export type InitSettings = SettingsOf<typeof INIT_SETTINGS>;

export interface NewStudent {
  readonly out: string;
  readonly config: ModelConfig;
  readonly parameterCount: number;
}

const DEFAULT_DEVIATION = 0.02;

/**
 * Makes a student of a given size with seeded random weights: normal with the configuration's initializer_range, norms
 * at one, biases at zero, as transformers initialises these models. The same settings give the same bytes everywhere.
 * @throws StillhouseError SETTING_MISSING, RUN_EXISTS, STUDENT_SHAPE_INVALID, and those of `readModelConfig`
 */
export async function initStudent(settings: InitSettings): Promise<NewStudent> {
  const { like, out, seed } = settings;
  if (like === undefined || out === undefined) {
    throw new StillhouseError({
      code: 'SETTING_MISSING',
      where: like === undefined ? '--like' : '--out',
      problem: 'the setting is required',
      remedy: 'Give --like DIR and --out DIR',
    });
  }
  if (await pathExists(join(out, 'config.json')))
    throw new StillhouseError({
      code: 'RUN_EXISTS',
      where: out,
      problem: 'the folder holds a model already',
      remedy: 'Choose another --out',
    });
  const config = studentConfig(await readModelConfig(like), settings, out);
  const deviation = typeof config.raw.initializer_range === 'number' ? config.raw.initializer_range : DEFAULT_DEVIATION;
  const parameters = describeParameters(config);
  const streams = new Map(parameters.map(({ name, shape }, stream) => [name, { shape, stream }]));
  const read = async (name: string) => {
    const { shape, stream } = streams.get(name)!;
    const count = countElements(shape);
    if (shape.length >= 2) return seededNormals(count, deviation, seed, stream);
    return new Float32Array(count).fill(isNormWeight(name) ? 1 : 0);
  };
  await writeModelFolder({ out, config: config.raw, parameters, read, dtype: 'float32', carryFrom: like });
  return { out, config, parameterCount: countParameters(config) };
}

function studentConfig(like: ModelConfig, settings: InitSettings, out: string): ModelConfig {
  const { layers, hidden, heads, kvHeads, intermediate, scale } = settings;
  const base = scale === undefined ? like.raw : { ...like.raw, ...scaledSizes(like, scale) };
  const { head_dim: headDim, ...rest } = base as Record<string, unknown>;
  const raw: Record<string, unknown> = {
    ...rest,
    ...(layers === undefined ? {} : { num_hidden_layers: layers, max_window_layers: layers }),
    ...(hidden === undefined ? {} : { hidden_size: hidden }),
    ...(heads === undefined ? {} : { num_attention_heads: heads }),
    ...(kvHeads === undefined ? {} : { num_key_value_heads: kvHeads }),
    ...(intermediate === undefined ? {} : { intermediate_size: intermediate }),
  };
  // A spelled-out head width belongs to the old shape; it stays only where the heads stay.
  if (hidden === undefined && heads === undefined && headDim !== undefined) raw.head_dim = headDim;
  const [width, count] = [Number(raw.hidden_size), Number(raw.num_attention_heads)];
  if (raw.head_dim === undefined && width % count !== 0) {
    throw new StillhouseError({
      code: 'STUDENT_SHAPE_INVALID',
      where: out,
      problem: 'the hidden size does not divide by the number of heads',
      expected: `a multiple of ${count}`,
      got: String(width),
      remedy: 'Change --hidden or --heads',
    });
  }
  return parseModelConfig(raw, `${out}/config.json`);
}

/**
 * Sizes for about `scale` times the parameters. Heads keep their width, so width goes in steps of one; of all
 * combinations of heads and layers the one is taken that comes nearest in size and shrinks depth and width alike.
 */
function scaledSizes(like: ModelConfig, scale: number): Record<string, number> {
  const target = countParameters(like) * scale;
  const ratio = like.intermediateSize / like.hiddenSize;
  const group = like.headCount / like.kvHeadCount;
  let best: { miss: number; sizes: Record<string, number> } | undefined;
  for (let heads = 1; heads <= like.headCount * 4; heads++) {
    const hidden = heads * like.headDim;
    const kvHeads = nearestDivisor(heads, heads / group);
    const intermediate = Math.max(8, Math.round((hidden * ratio) / 8) * 8);
    for (let layers = 1; layers <= like.layerCount * 4; layers++) {
      const count = countParameters({
        ...like,
        layerCount: layers,
        hiddenSize: hidden,
        headCount: heads,
        kvHeadCount: kvHeads,
        intermediateSize: intermediate,
      });
      const shape = Math.abs(Math.log(layers / like.layerCount) - Math.log(hidden / like.hiddenSize));
      const miss = Math.abs(Math.log(count / target)) + 0.05 * shape;
      if (best !== undefined && miss >= best.miss) continue;
      const sizes = {
        num_hidden_layers: layers,
        max_window_layers: layers,
        hidden_size: hidden,
        head_dim: like.headDim,
        num_attention_heads: heads,
        num_key_value_heads: kvHeads,
        intermediate_size: intermediate,
      };
      best = { miss, sizes };
    }
  }
  return best!.sizes;
}

function nearestDivisor(of: number, wanted: number): number {
  const divisors = Array.from({ length: of }, (_, i) => i + 1).filter((one) => of % one === 0);
  return divisors.reduce((best, one) => (Math.abs(one - wanted) < Math.abs(best - wanted) ? one : best));
}
