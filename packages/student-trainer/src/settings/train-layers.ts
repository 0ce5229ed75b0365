import { isHeadTied, locateTensor, type ModelConfig } from '@stillhouse/checkpoint';
import { StillhouseError } from '@stillhouse/errors';

/** The parts of a student outside its layers. */
type Part = 'embedding' | 'norm' | 'head';

const PARTS: readonly string[] = ['embedding', 'norm', 'head'] satisfies Part[];

/** Which parts of a student learn. */
export interface TrainedParts {
  readonly parts: ReadonlySet<Part>;
  readonly layers: ReadonlySet<number>;
}

const FLAG = '--train-layers';
const SYNTAX = 'all, or any of: N, N-M, first-N, last-N, embedding, norm, head';

/** Whether a word (a whole number from the command line) has the form of an entry of `trainLayers`. */
export function isTrainLayersEntry(value: unknown): value is string | number {
  if (typeof value === 'number') return Number.isInteger(value) && value >= 0;
  return typeof value === 'string' && (/^(all|(first-|last-)?\d+|\d+-\d+)$/.test(value) || PARTS.includes(value));
}

export const TRAIN_LAYERS_SYNTAX = SYNTAX;

/**
 * What `trainLayers` names in a student: layers count from 0, ranges have both ends, entries add up. `all` is
 * everything and stands alone. Where embedding and output matrix are one tensor, either name means that tensor in both
 * its uses.
 * @throws StillhouseError TRAIN_LAYERS_INVALID
 */
export function resolveTrainLayers(entries: readonly (string | number)[], config: ModelConfig): TrainedParts {
  const { layerCount } = config;
  const refuse = (entry: string | number, problem: string, expected: string): never => {
    throw new StillhouseError({
      code: 'TRAIN_LAYERS_INVALID',
      where: FLAG,
      problem,
      expected,
      got: String(entry),
    });
  };
  const parts = new Set<Part>();
  const layers = new Set<number>();
  const addRange = (entry: string | number, from: number, to: number) => {
    if (from > to) refuse(entry, 'the range ends before it begins', `${to}-${from}`);
    if (to >= layerCount) {
      refuse(entry, `the student has ${layerCount} layers`, `layers from 0 to ${layerCount - 1}`);
    }
    for (let layer = from; layer <= to; layer++) layers.add(layer);
  };
  const addCount = (entry: string, count: number, from: number) => {
    if (count < 1 || count > layerCount) {
      refuse(entry, `the student has ${layerCount} layers`, `a number of layers from 1 to ${layerCount}`);
    }
    addRange(entry, from, from + count - 1);
  };
  for (const entry of entries) {
    const word = String(entry);
    const range = /^(\d+)(?:-(\d+))?$/.exec(word);
    const count = /^(first|last)-(\d+)$/.exec(word);
    if (word === 'all') {
      if (entries.length > 1) refuse(entries.join(','), '`all` leaves nothing for other entries to add', 'all alone');
      for (const part of PARTS) parts.add(part as Part);
      addRange(entry, 0, layerCount - 1);
    } else if (range !== null) addRange(entry, Number(range[1]), Number(range[2] ?? range[1]));
    else if (count !== null) {
      const size = Number(count[2]);
      addCount(word, size, count[1] === 'first' ? 0 : layerCount - size);
    } else if (PARTS.includes(word)) parts.add(word as Part);
    else refuse(entry, 'this names no part of a student', SYNTAX);
  }
  if (isHeadTied(config) && (parts.has('embedding') || parts.has('head'))) parts.add('embedding').add('head');
  return { parts, layers };
}

/** Whether a parameter is in the parts that learn, by its full name. */
export function trainedNames({ parts, layers }: TrainedParts): (name: string) => boolean {
  return (name) => {
    const place = locateTensor(name);
    if (place?.part === 'layer') return layers.has(place.layer);
    return place !== undefined && parts.has(place.part);
  };
}
