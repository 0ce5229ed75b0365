import { StillhouseError } from '@stillhouse/errors';
import type { HiddenLayer } from '@stillhouse/teacher-cache';

/** A layer of the student beside one of the teacher. */
export interface LayerPair {
  readonly student: HiddenLayer;
  readonly teacher: HiddenLayer;
}

const PAIR = /^(final|\d+):(final|\d+)$/;
const MAPS: readonly unknown[] = ['last', 'uniform'];

/** One of `hiddenLayers`: a map by name, or a pair such as `6:7`. */
export function isLayerPair(value: unknown): value is string {
  return MAPS.includes(value) || (typeof value === 'string' && PAIR.test(value));
}

export interface LayerMapContext {
  /** Layers whose states the cache holds. */
  readonly stored: readonly HiddenLayer[];
  readonly teacherLayers: number;
  readonly studentLayers: number;
  /** The cache, for messages. */
  readonly where: string;
}

/**
 * The pairs that entries for which `isLayerPair` holds stand for: `last` is `final:final`; `uniform` spreads the layers
 * that the cache holds over the student's, see `spreadLayers`.
 * @throws StillhouseError HIDDEN_NOT_IN_CACHE, LAYER_OUT_OF_RANGE, SETTING_INVALID
 */
export function resolveLayerPairs(
  entries: readonly string[],
  flag: string,
  context: LayerMapContext,
): readonly LayerPair[] {
  const { stored, studentLayers, where } = context;
  if (entries.length > 1 && entries.some((entry) => MAPS.includes(entry))) {
    throw new StillhouseError({
      code: 'SETTING_INVALID',
      where: flag,
      problem: 'a map by name stands alone',
      expected: 'last, uniform, or pairs such as 6:7,final:final',
      got: entries.join(','),
    });
  }
  const pairs = entries[0] === 'uniform' ? spreadLayers(context) : entries.map(parsePair);
  for (const [i, { student, teacher }] of pairs.entries()) {
    const pair = `${student}:${teacher}`;
    if (!stored.includes(teacher)) refuseAbsent(`${flag} ${pair}`, teacher, context);
    if (student !== 'final' && Number(student) > studentLayers) {
      throw new StillhouseError({
        code: 'LAYER_OUT_OF_RANGE',
        where: `${flag} ${pair}`,
        problem: 'the student has no such layer',
        expected: `final or 0 to ${studentLayers}`,
        got: String(student),
      });
    }
    if (pairs.findIndex((other) => other.student === student && other.teacher === teacher) < i) {
      throw new StillhouseError({
        code: 'SETTING_INVALID',
        where: flag,
        problem: 'a pair is named twice',
        got: pair,
        remedy: 'Name it once',
      });
    }
  }
  if (pairs.length > 0) return pairs;
  throw new StillhouseError({
    code: 'HIDDEN_NOT_IN_CACHE',
    where: `${flag} uniform`,
    problem: `the cache ${where} holds no hidden states`,
    remedy: 'Build the cache with --labels hidden and --hidden-layers, or extend it',
  });
}

function refuseAbsent(at: string, layer: HiddenLayer, { stored, teacherLayers, where }: LayerMapContext): never {
  const states = layer === 'final' ? 'final hidden states' : `hidden states of layer ${layer}`;
  const isPossible = layer === 'final' || Number(layer) <= teacherLayers;
  throw new StillhouseError({
    code: 'HIDDEN_NOT_IN_CACHE',
    where: at,
    problem: `the cache ${where} holds no ${states}`,
    expected: stored.length === 0 ? 'no pairs: the cache holds no hidden states' : `a layer of ${stored.join(', ')}`,
    got: String(layer),
    remedy: isPossible
      ? `Build or extend the cache with --labels hidden --hidden-layers ${[...stored, layer].join(',')}`
      : `The teacher has layers 0 to ${teacherLayers}: name one that it has`,
  });
}

const parseLayer = (word: string): HiddenLayer => (word === 'final' ? 'final' : Number(word));

function parsePair(entry: string): LayerPair {
  if (entry === 'last') return { student: 'final', teacher: 'final' };
  const [, student, teacher] = PAIR.exec(entry)!;
  return { student: parseLayer(student!), teacher: parseLayer(teacher!) };
}

/**
 * Layer t of M of the teacher belongs at t · L / M of the student's L (the uniform map of Jiao et al. 2020,
 * arXiv 1909.10351, §4.2, from the other side) and is held to the nearest whole layer; where several of those that the cache holds
 * meet on one, the one that belongs nearest to it is taken, of two the deeper one. Final states go with final states.
 */
function spreadLayers({ stored, teacherLayers, studentLayers }: LayerMapContext): readonly LayerPair[] {
  const nearest = new Map<number, { readonly teacher: number; readonly distance: number }>();
  for (const teacher of stored.filter((layer) => typeof layer === 'number').sort((a, b) => a - b)) {
    const place = (teacher * studentLayers) / teacherLayers;
    const student = Math.round(place);
    const distance = Math.abs(place - student);
    const before = nearest.get(student);
    if (before === undefined || distance <= before.distance) nearest.set(student, { teacher, distance });
  }
  const pairs: LayerPair[] = [...nearest]
    .map(([student, { teacher }]) => ({ student, teacher }))
    .sort((a, b) => a.student - b.student);
  return stored.includes('final') ? [...pairs, { student: 'final', teacher: 'final' }] : pairs;
}
