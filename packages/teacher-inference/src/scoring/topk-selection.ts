import { largestTopKCount, type TopKLabels, type TopKPolicy } from '@stillhouse/teacher-cache';

/** Candidates of some positions: the k most probable ids in order, and ids that are kept whatever their rank. */
export interface TopKCandidates {
  /** [positions, k] */
  readonly ids: Int32Array;
  readonly logprobs: Float32Array;
  /** [positions, E] */
  readonly keptIds: BigInt64Array;
  readonly keptLogprobs: Float32Array;
  /** [positions, temperatures] */
  readonly logZ: Float32Array;
}

/**
 * The labels of the policy: as many candidates as the mass asks for (all k without `topP`), and the kept ids among them
 * by their probability, each id once; of equals the ranked candidate comes first, then the lower id.
 */
export function selectTopK(candidates: TopKCandidates, policy: TopKPolicy, vocabSize: number): TopKLabels {
  const { k, temperatures } = policy;
  const positions = candidates.logZ.length / temperatures.length;
  const keptCount = positions === 0 ? 0 : candidates.keptIds.length / positions;
  const most = positions * largestTopKCount(policy, vocabSize);
  const counts = new Int32Array(positions);
  const ids = new Int32Array(most);
  const logprobs = new Float32Array(most);
  let end = 0;
  for (let position = 0; position < positions; position++) {
    const first = position * k;
    const start = end;
    const ranked = countByMass(candidates.logprobs.subarray(first, first + k), policy);
    ids.set(candidates.ids.subarray(first, first + ranked), start);
    logprobs.set(candidates.logprobs.subarray(first, first + ranked), start);
    end += ranked;
    for (let i = position * keptCount; i < (position + 1) * keptCount; i++) {
      const id = Number(candidates.keptIds[i]!);
      if (ids.subarray(start, end).includes(id)) continue;
      insert({ ids, logprobs, start, end, ranked }, id, candidates.keptLogprobs[i]!);
      end++;
    }
    counts[position] = end - start;
  }
  return { counts, ids: ids.slice(0, end), logprobs: logprobs.slice(0, end), logZ: candidates.logZ };
}

/** The fewest of the most probable ids that hold `topP`, from `minK` to all. */
function countByMass(logprobs: Float32Array, { topP, minK }: TopKPolicy): number {
  if (topP === undefined) return logprobs.length;
  let mass = 0;
  let count = 0;
  while (count < logprobs.length && (count < minK! || mass < topP)) mass += Math.exp(logprobs[count++]!);
  return count;
}

/** The entries of a position, in arrays with room for more. */
interface Slots {
  readonly ids: Int32Array;
  readonly logprobs: Float32Array;
  readonly start: number;
  readonly end: number;
  /** The first so many are there for their rank. */
  readonly ranked: number;
}

function insert({ ids, logprobs, start, end, ranked }: Slots, id: number, logprob: number) {
  let at = end;
  const comesBefore = (slot: number) =>
    logprobs[slot]! > logprob || (logprobs[slot] === logprob && (slot < start + ranked || ids[slot]! < id));
  while (at > start && !comesBefore(at - 1)) at--;
  ids.copyWithin(at + 1, at, end);
  logprobs.copyWithin(at + 1, at, end);
  ids[at] = id;
  logprobs[at] = logprob;
}
