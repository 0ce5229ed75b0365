import { StillhouseError } from '@stillhouse/errors';
import { type LabelledRow, type LabelPositions, labelPositions } from '@stillhouse/teacher-cache';
import { FILLER_LOGPROB } from '../distillkit/distillkit-export.ts';

/** A sequence of another tool, its labels at their positions. */
export interface ForeignRow {
  readonly id: string;
  /** File and row, for messages. */
  readonly where: string;
  /** [L] */
  readonly inputIds: Int32Array;
  /** [L] */
  readonly lossMask: Uint8Array;
  /**
   * The label of position p, which predicts token p + 1, by any order of probability; undefined where there is none.
   */
  readonly labelAt: (
    position: number,
  ) => { readonly ids: ArrayLike<number>; readonly logprobs: ArrayLike<number> } | undefined;
}

/** What had to be done to labels so that each is a distribution. */
export interface Repairs {
  /**
   * Positions whose logprobs, quantised or from a fitted curve, could be no distribution's: with a mass above 1 they
   * were lowered together, with too little in reach of 1 the last were raised to a common one.
   */
  rescaled: number;
  /** The largest change of a logprob, in nats. */
  largestShiftNats: number;
  /** Entries that were padding. */
  dropped: number;
}

/** Mass that quantisation or a fitted curve can add; more is no distribution, such as logits. */
const LARGEST_EXCESS = 1.5;
/** Half of what the format tolerates. */
const NEGLIGIBLE_MASS = 5e-4;
/**
 * How far below the truth the last entries may lie: rounded ones by little, those of a fitted curve by nats. Where more
 * is wanting, the most probable ids are missing.
 */
export const RAISE_NATS = { stored: 0.05, fitted: 20 } as const;

/** Of the teacher whose labels they are. */
export interface ForeignDistributions {
  readonly vocabSize: number;
  readonly precision: keyof typeof RAISE_NATS;
}

/**
 * Turns a row into what a cache stores: entries by descending probability, padding left out, a mass that can be
 * one distribution's, log_z at T = 1 alone.
 * @throws StillhouseError IMPORT_LABELS_INVALID
 */
export function toLabelledRow(
  foreign: ForeignRow,
  policy: LabelPositions,
  distributions: ForeignDistributions,
  repairs: Repairs,
): LabelledRow {
  const { id, inputIds, lossMask, where } = foreign;
  const positions = labelPositions(lossMask, policy);
  const counts = new Int32Array(positions.length);
  const ids: number[] = [];
  const logprobs: number[] = [];
  for (const [place, position] of positions.entries()) {
    const label = foreign.labelAt(position);
    const fail: Fail = (problem, expected, got) => {
      throw invalid(`${where}, position ${position}`, problem, expected, got);
    };
    if (label === undefined) {
      fail('a token is to be predicted here and the teacher has no label', undefined, undefined);
    }
    const entries = readEntries(label!, distributions, fail, repairs);
    counts[place] = entries.length;
    for (const entry of entries) {
      ids.push(entry.id);
      logprobs.push(entry.logprob);
    }
  }
  return {
    row: { id, inputIds, lossMask },
    positions,
    topk: {
      counts,
      ids: Int32Array.from(ids),
      logprobs: Float32Array.from(logprobs),
      logZ: new Float32Array(positions.length),
    },
  };
}

export function invalid(where: string, problem: string, expected?: string, got?: unknown): StillhouseError {
  return new StillhouseError({
    code: 'IMPORT_LABELS_INVALID',
    where,
    problem,
    ...(expected === undefined ? {} : { expected }),
    ...(got === undefined ? {} : { got: String(got) }),
  });
}

interface Entry {
  readonly id: number;
  readonly logprob: number;
}

/** Refuses the labels of a position. */
type Fail = (problem: string, expected?: string, got?: unknown) => never;

const massOf = (entries: readonly Entry[]) => entries.reduce((sum, { logprob }) => sum + Math.exp(logprob), 0);

function readEntries(
  { ids, logprobs }: { readonly ids: ArrayLike<number>; readonly logprobs: ArrayLike<number> },
  distributions: ForeignDistributions,
  fail: Fail,
  repairs: Repairs,
): Entry[] {
  const { vocabSize } = distributions;
  if (ids.length !== logprobs.length) {
    fail('ids and logprobs are of different number', String(ids.length), logprobs.length);
  }
  const entries: Entry[] = [];
  const seen = new Set<number>();
  for (let i = 0; i < ids.length; i++) {
    const [id, logprob] = [ids[i]!, logprobs[i]!];
    if (Number.isNaN(logprob) || logprob === Infinity) fail(`the logprob of id ${id} is no number`, undefined, logprob);
    if (logprob <= FILLER_LOGPROB) {
      repairs.dropped++;
      continue;
    }
    if (!Number.isInteger(id) || id < 0 || id >= vocabSize) {
      fail('an id is outside of the vocabulary', `0 to ${vocabSize - 1}`, id);
    }
    if (seen.has(id)) fail(`id ${id} is there twice`);
    seen.add(id);
    entries.push({ id, logprob });
  }
  if (entries.length === 0) fail('no entry has any probability');
  entries.sort((a, b) => b.logprob - a.logprob);
  const mass = massOf(entries);
  if (mass > LARGEST_EXCESS) {
    fail('the probabilities add up to more than 1: these are no logprobs', 'at most 1', mass.toPrecision(4));
  }
  if (mass <= 1) return raiseLast(entries, distributions, fail, repairs);
  const shift = Math.log(mass);
  repairs.rescaled++;
  repairs.largestShiftNats = Math.max(repairs.largestShiftNats, shift);
  return entries.map(({ id, logprob }) => ({ id, logprob: logprob - shift }));
}

/**
 * Ids outside have at most the probability of the last entry. Where that leaves them less than the mass that is
 * missing, the last entries are raised to the least probability that is enough.
 */
function raiseLast(
  entries: Entry[],
  { vocabSize, precision }: ForeignDistributions,
  fail: Fail,
  repairs: Repairs,
): Entry[] {
  const mass = massOf(entries);
  const reachable = mass + (vocabSize - entries.length) * Math.exp(entries.at(-1)!.logprob);
  if (reachable >= 1 - NEGLIGIBLE_MASS) return entries;
  // Those from `kept` on share what the others leave with all ids outside.
  let kept = entries.length;
  let keptMass = mass;
  let level = -Infinity;
  do {
    kept--;
    keptMass -= Math.exp(entries[kept]!.logprob);
    level = Math.log((1 - keptMass) / (vocabSize - kept));
  } while (kept > 0 && entries[kept - 1]!.logprob < level);
  const raise = level - entries.at(-1)!.logprob;
  if (raise > RAISE_NATS[precision]) {
    fail(
      'the most probable ids are missing: these and ids less probable cannot add up to 1',
      'a mass of 1',
      `at most ${reachable.toPrecision(4)}`,
    );
  }
  repairs.rescaled++;
  repairs.largestShiftNats = Math.max(repairs.largestShiftNats, raise);
  return entries.map((entry, i) => (i < kept ? entry : { ...entry, logprob: level }));
}
