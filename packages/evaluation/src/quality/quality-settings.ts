import { choice, integer, list, type SettingsOf, text } from '@stillhouse/settings';

const isTemperature = (value: unknown): value is number =>
  typeof value === 'number' && value > 0 && Number.isFinite(value);

/** Every setting of `stillhouse cache quality`. */
export const QUALITY_SETTINGS = {
  cache: text('the teacher cache to measure', undefined),
  student: text('model folder of the student whose gradients are compared', undefined),
  teacher: text(
    "model folder of the cache's teacher, for the true distribution; left out: the cache's own exact states",
    undefined,
  ),
  positionsLimit: integer('target positions that are measured, of rows from all over the cache', 1000, { min: 1 }),
  temperatures: list('softmax temperatures', isTemperature, 'numbers above 0, such as 1,2,4', [1, 2, 4]),
  out: text('file for the result, JSON; left out: beside a cache on this machine, under its name', undefined),
  chunkPositions: integer('positions whose logits are in memory at a time', 32, { min: 1 }),
  device: choice('where to compute', ['auto', 'cpu', 'cuda', 'webgpu'], 'auto'),
  threads: integer('CPU threads; left out: all', undefined, { min: 1 }),
} as const;

export type QualitySettings = SettingsOf<typeof QUALITY_SETTINGS>;
