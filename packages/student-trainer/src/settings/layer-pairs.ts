import { StillhouseError } from '@stillhouse/errors';
import { attentionLayer, type HiddenLayer } from '@stillhouse/teacher-cache';

/** A layer of the student beside one of the teacher. */
export interface LayerPair {
  readonly student: HiddenLayer;
  readonly teacher: HiddenLayer;
}

/** Which states of a decoder are paired: those between the layers, or the attention outputs in them. */
export type PairedStates = 'hidden' | 'attention';

const PAIRS: Readonly<Record<PairedStates, RegExp>> = {
  hidden: /^(final|\d+):(final|\d+)$/,
  attention: /^([1-9]\d*):([1-9]\d*)$/,
};
const MAPS: readonly unknown[] = ['last', 'uniform'];
const FLAGS: Readonly<Record<PairedStates, string>> = { hidden: '--hidden-layers', attention: '--attention-layers' };

export const statesOf = ({ student }: LayerPair): PairedStates =>
  attentionLayer(student) === undefined ? 'hidden' : 'attention';

const isPair = (states: PairedStates, value: unknown): value is string =>
  MAPS.includes(value) || (typeof value === 'string' && PAIRS[states].test(value));

/** One of `hiddenLayers`: a map by name, or a pair such as `6:7`. */
export const isLayerPair = (value: unknown): value is string => isPair('hidden', value);

/** One of `attentionLayers`: the same, of layers counted from 1. */
export const isAttentionPair = (value: unknown): value is string => isPair('attention', value);

/** A pair as it is given: `6:7`, without the kind of its states. */
export const namePair = ({ student, teacher }: LayerPair) => `${nameLayer(student)}:${nameLayer(teacher)}`;

const nameLayer = (layer: HiddenLayer) => attentionLayer(layer) ?? layer;

export interface LayerMapContext {
  /** Layers whose states the cache holds. */
  readonly stored: readonly HiddenLayer[];
  readonly teacherLayers: number;
  readonly studentLayers: number;
  /** The cache, for messages. */
  readonly where: string;
}

/**
 * The pairs that entries of `hiddenLayers` or `attentionLayers` stand for: `last` is `final:final`, or the attention of
 * the last layers; `uniform` spreads the layers that the cache holds over the student's, see `spreadLayers`.
 * @throws StillhouseError HIDDEN_NOT_IN_CACHE, LAYER_OUT_OF_RANGE, SETTING_INVALID
 */
export function resolveLayerPairs(
  states: PairedStates,
  entries: readonly string[],
  given: LayerMapContext,
): readonly LayerPair[] {
  const flag = FLAGS[states];
  const stored = given.stored.filter((layer) => (attentionLayer(layer) === undefined) === (states === 'hidden'));
  const context = { ...given, stored };
  const { studentLayers, where } = context;
  if (entries.length > 1 && entries.some((entry) => MAPS.includes(entry))) {
    throw new StillhouseError({
      code: 'SETTING_INVALID',
      where: flag,
      problem: 'a map by name stands alone',
      expected: 'last, uniform, or pairs such as 6:7,final:final',
      got: entries.join(','),
    });
  }
  const pairs =
    entries[0] === 'uniform'
      ? spreadLayers(states, context)
      : entries.map((entry) => parsePair(states, entry, context));
  for (const [i, { student, teacher }] of pairs.entries()) {
    const pair = namePair({ student, teacher });
    if (!stored.includes(teacher)) refuseAbsent(`${flag} ${pair}`, teacher, context);
    if (student !== 'final' && Number(nameLayer(student)) > studentLayers) {
      throw new StillhouseError({
        code: 'LAYER_OUT_OF_RANGE',
        where: `${flag} ${pair}`,
        problem: 'the student has no such layer',
        expected: states === 'hidden' ? `final or 0 to ${studentLayers}` : `1 to ${studentLayers}`,
        got: String(nameLayer(student)),
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
    problem: `the cache ${where} holds no ${states === 'hidden' ? 'hidden states' : 'attention outputs'}`,
    remedy: 'Build the cache with --labels hidden and --hidden-layers, or extend it',
  });
}

function refuseAbsent(at: string, layer: HiddenLayer, { stored, teacherLayers, where }: LayerMapContext): never {
  const attention = attentionLayer(layer);
  const kind = attention === undefined ? 'hidden states' : 'attention outputs';
  const states = layer === 'final' ? 'final hidden states' : `${kind} of layer ${nameLayer(layer)}`;
  const isPossible = layer === 'final' || Number(nameLayer(layer)) <= teacherLayers;
  throw new StillhouseError({
    code: 'HIDDEN_NOT_IN_CACHE',
    where: at,
    problem: `the cache ${where} holds no ${states}`,
    expected:
      stored.length === 0 ? `no pairs: the cache holds no ${kind}` : `a layer of ${stored.map(nameLayer).join(', ')}`,
    got: String(nameLayer(layer)),
    remedy: isPossible
      ? `Build or extend the cache with --labels hidden --hidden-layers ${[...stored, layer].join(',')}`
      : `The teacher has ${teacherLayers} layers: name one that it has`,
  });
}

function makeLayer(states: PairedStates, layer: number): HiddenLayer {
  return states === 'hidden' ? layer : `attention.${layer}`;
}

function parsePair(states: PairedStates, entry: string, { studentLayers, teacherLayers }: LayerMapContext): LayerPair {
  if (entry === 'last') {
    if (states === 'hidden') return { student: 'final', teacher: 'final' };
    return { student: makeLayer(states, studentLayers), teacher: makeLayer(states, teacherLayers) };
  }
  const [student, teacher] = PAIRS[states]
    .exec(entry)!
    .slice(1)
    .map((word): HiddenLayer => (word === 'final' ? 'final' : makeLayer(states, Number(word))));
  return { student: student!, teacher: teacher! };
}

/**
 * Layer t of M of the teacher belongs at t · L / M of the student's L (the uniform map of Jiao et al. 2020,
 * arXiv 1909.10351, §4.2, from the other side) and is held to the nearest whole layer; where several of those that the
 * cache holds meet on one, the one that belongs nearest to it is taken, of two the deeper one. Final states go with
 * final states.
 */
function spreadLayers(
  states: PairedStates,
  { stored, teacherLayers, studentLayers }: LayerMapContext,
): readonly LayerPair[] {
  const nearest = new Map<number, { readonly teacher: number; readonly distance: number }>();
  const numbers = stored.filter((layer) => layer !== 'final').map((layer) => Number(nameLayer(layer)));
  for (const teacher of numbers.sort((a, b) => a - b)) {
    const place = (teacher * studentLayers) / teacherLayers;
    const student = Math.max(states === 'hidden' ? 0 : 1, Math.round(place));
    const distance = Math.abs(place - student);
    const before = nearest.get(student);
    if (before === undefined || distance <= before.distance) nearest.set(student, { teacher, distance });
  }
  const pairs: LayerPair[] = [...nearest]
    .sort(([a], [b]) => a - b)
    .map(([student, { teacher }]) => ({ student: makeLayer(states, student), teacher: makeLayer(states, teacher) }));
  return stored.includes('final') ? [...pairs, { student: 'final', teacher: 'final' }] : pairs;
}
